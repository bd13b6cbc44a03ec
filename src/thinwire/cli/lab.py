"""`thinwire lab`: emulated hosts on this machine, and a command on each of them."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from thinwire.cli._lab_network import network_flags, requested_network
from thinwire.text.output import CommandOutput
from thinwire.text.words import columns

if TYPE_CHECKING:
    from thinwire.lab import Lab, Ran
    from thinwire.lab.check import Finding
    from thinwire.net import Network

ABOUT = """\
Emulated hosts on this machine, joined by wires as thin, long and lossy as you choose. Needs Linux,
ip and tc, and root or user namespaces.

    thinwire lab run --hosts 4 --rate 100mbit --rtt 50ms --loss 0.1% -- python train.py
        once on each host, with torchrun's environment
    thinwire lab run --hosts 2 --rate 1gbit -- thinwire train --steps 100
        the same for thinwire's own job
    thinwire lab run --nodes 2 --hosts 4 --inner-rate 10gbit --rate 100mbit -- …
        two nodes of two hosts, thin between them
    thinwire lab run --file lab.toml -- …
        switches, schedules, cuts: see docs/lab.md
    thinwire lab check --hosts 4 --rate 100mbit --rtt 50ms
        is that what it delivers?
    thinwire lab show --hosts 4 --rate 100mbit
        the same as a lab file
    thinwire lab list
        labs that are up; those left behind are ended

The exit code of run is the worst of the hosts' (124: --timeout). Nothing of the machine's own
network is touched, and nothing stays.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `thinwire lab`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="run|check|show|list")
    descriptions = {
        "run": "a command on every host",
        "check": "measure what the lab delivers",
        "show": "print the network as a lab file",
        "list": "labs that are up; ends those whose owner is gone",
    }
    for name, about in descriptions.items():
        action = actions.add_parser(name, help=about, allow_abbrev=False)
        action.add_argument(
            "--json",
            action="store_true",
            dest="as_json",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        if name == "list":
            continue
        network_flags(action)
        if name != "show":
            action.add_argument(
                "--means",
                choices=("auto", "netem", "queue"),
                default="auto",
                help="of delaying packets; default auto",
            )
        if name == "run":
            action.add_argument(
                "--timeout",
                type=float,
                metavar="SECONDS",
                help="stop all hosts after it; default: never",
            )
            action.add_argument(
                "--grace",
                type=float,
                default=30.0,
                metavar="SECONDS",
                help="for the others, once a host fails; default 30",
            )
            action.add_argument("command", nargs="+", metavar="COMMAND", help="after --")


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Run the action that `options` names and return the exit code."""
    # Listing and showing need no lab; wrong times are refused before one is built.
    if options.action == "list":
        return _list(output)
    network = requested_network(options)
    if options.action == "show":
        return _show(network, output)
    from thinwire.lab import Lab
    from thinwire.lab.running import check_seconds

    if options.action == "run":
        check_seconds(options.timeout, options.grace)
    with ended_by_signals(), Lab(network, options.means) as lab:
        # Notes on what an earlier lab left, and on what hosts share with the machine.
        for note in lab.stale:
            output.note(
                f"ended a lab that process {note.owner} had left behind ({len(note.hosts)} hosts)"
            )
        if lab.missing:
            output.note(f"hosts share with this machine: {', '.join(lab.missing)}")
        return _run(lab, options, output) if options.action == "run" else _check(lab, output)


def _show(network: Network, output: CommandOutput) -> int:
    import tomli_w

    from thinwire.net import table_of

    table = table_of(network)
    output.result({"network": table}, tomli_w.dumps(table))
    return 0


def _list(output: CommandOutput) -> int:
    from thinwire.lab import labs

    ended, going = labs.clean(), labs.listed()
    rows = [
        {
            "owner": note.owner,
            "hosts": list(note.hosts),
            "seconds": round(time.time() - note.begun, 1),
        }
        for note in going
    ]
    lines = [
        f"process {note.owner}: {', '.join(note.hosts)}, up for {time.time() - note.begun:.0f} s"
        for note in going
    ]
    lines += [
        f"ended what process {note.owner} had left behind: {', '.join(note.hosts)}"
        for note in ended
    ]
    values = {
        "labs": rows,
        "ended": [{"owner": note.owner, "hosts": list(note.hosts)} for note in ended],
    }
    output.result(values, "\n".join(lines) or "no labs")
    return 0


def _run(lab: Lab, options: argparse.Namespace, output: CommandOutput) -> int:
    from thinwire.lab.running import print_line
    from thinwire.net import table_of

    def to_error(host: str, line: str, complaint: bool) -> None:  # noqa: ARG001
        print_line(sys.stderr, f"[{host}] {line}")

    # With --json standard output has the result alone, so ranks' lines go to standard error.
    done = lab.run(
        options.command,
        timeout=options.timeout,
        grace=options.grace,
        on_line=to_error if options.as_json else None,
    )
    for host, why in done.stopped.items():
        print_line(sys.stderr, f"{host} was stopped: {why}")
    values = {
        "network": table_of(lab.network),
        "command": options.command,
        "worst": done.worst,
        **asdict(done),
    }
    if options.as_json:
        output.result(values, "")
    else:
        print_line(sys.stderr, summary(done))
    return done.worst


def summary(done: Ran) -> str:
    """Return what went over the wires, in a few lines."""
    rows = [("", "sent", "received", "dropped", "exit code")]
    for name, count in done.counts.items():
        code = "" if name not in done.codes else str(done.codes[name])
        rows.append(
            (
                name,
                f"{count.sent_bytes / 1e6:,.2f} MB",
                f"{count.received_bytes / 1e6:,.2f} MB",
                f"{count.dropped:,}",
                code,
            )
        )
    lines = columns(rows)
    words = f"{done.seconds:.1f} s"
    if done.line is not None and done.line.seen:
        words += (
            f"; {done.line.lost:,} of {done.line.seen:,} packets lost on purpose, "
            f"{done.line.lateness}"
        )
    if done.line is not None and done.line.dropped:
        words += (
            f"; {done.line.dropped:,} could not be held: this machine is too slow for such a line"
        )
    return "\n".join([*lines, words])


def _check(lab: Lab, output: CommandOutput) -> int:
    from thinwire.lab.check import check

    findings = []
    # Print each figure as it is measured: a check takes a while.
    for each in check(lab):
        findings.append(each)
        if not output.as_json:
            output.note(_words(each))
    stats = lab.line_stats()
    bad = sum(not each.ok for each in findings)
    means = "nothing is delayed" if stats is None else f"delayed by {stats.means}, {stats.lateness}"
    values = {
        "ok": not bad,
        "findings": [each.record() for each in findings],
        "line": None if stats is None else asdict(stats),
    }
    output.result(values, f"{len(findings)} figures, {bad} not as asked; {means}")
    return 1 if bad else 0


def _words(each: Finding) -> str:
    from thinwire.net import units

    # Each kind of figure in its own unit.
    forms: dict[str, Callable[[float], str]] = {
        "rtt": lambda value: f"{value * 1e3:.2f} ms",
        "rate": lambda value: f"{units.rate_text(round(value, -3))}",
        "loss": lambda value: f"{value * 100:.3f}%",
        "slow": lambda value: f"{value:.2f}x",
    }
    form = forms[each.what]
    requested = "no limit" if each.requested is None else form(each.requested)
    interval = (
        ""
        if each.low is None or each.high is None
        else (
            f" ({form(each.low)} to {form(each.high)} at 95 %, judged at 99.9 %; {each.n:,} "
            "packets)"
        )
    )
    way = each.source if each.source == each.to else f"{each.source} → {each.to}"
    return (
        f"{'ok ' if each.ok else 'BAD'}  {way:<18}  {each.what:<5} asked {requested:<10} measured "
        f"{form(each.measured)}{interval}"
    )


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the lab at SIGTERM and SIGHUP as at Ctrl-C, so that nothing stays; a signal that is
    ignored, as under nohup, stays ignored."""

    def end(number: int, frame: object) -> None:  # noqa: ARG001
        sys.exit(128 + number)

    handled = [
        each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN
    ]
    before = {each: signal.signal(each, end) for each in handled}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
