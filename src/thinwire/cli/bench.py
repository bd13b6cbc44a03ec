"""Run `thinwire bench`: strategies and rivals on the same model, text and links."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinwire.cli.lab import ended_by_signals
from thinwire.errors import BenchError
from thinwire.text.output import PROGRAM, CommandOutput
from thinwire.text.words import columns

if TYPE_CHECKING:
    from thinwire.bench.studies import Study
    from thinwire.bench.study import Bench

ABOUT = """\
Strategies and rivals on the same model, text, batches and links: loss against wall-clock and
bytes, step times, and who wins where.

    thinwire bench --quick      two hosts, seven contestants, two links: under 10 minutes on 2 cores
    thinwire bench              the full study: a day on two cores; stop it when you like, the same
                                command goes on
    thinwire bench --quick --only DDP --only "dense, sliced" --add diloco,period=20
    thinwire bench --list       contestants and links

Each contestant runs in its own processes (rivals in environments of their own, built at first use),
in emulated hosts (`thinwire lab`). Records are in --out/records.jsonl; the page of all records is
--out/report.html.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `thinwire bench`."""
    parser.add_argument("--quick", action="store_true", help="the small study")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="default runs/bench, with --quick runs/bench-quick",
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="a contestant of --list; may be repeated; default: all",
    )
    parser.add_argument(
        "--add",
        action="append",
        metavar="STRATEGY",
        help="a recipe such as diloco,period=20, or a .toml file; may be repeated",
    )
    parser.add_argument(
        "--link",
        action="append",
        metavar="NAME",
        help="a link of --list; may be repeated; default: all",
    )
    parser.add_argument("--seeds", type=int, metavar="N", help="of the loss curves")
    parser.add_argument(
        "--part",
        action="append",
        choices=("curves", "times", "proof"),
        help=(
            "may be repeated; default: all, in this order, the proof where its contestant and "
            "link are chosen"
        ),
    )
    parser.add_argument("--retry", action="store_true", help="measure again what failed")
    parser.add_argument(
        "--list", action="store_true", help="show contestants and links, measure nothing"
    )


def run(options: argparse.Namespace, output: CommandOutput) -> int:
    """Measure, then write the page."""
    from thinwire.bench.contestants import chosen, ours
    from thinwire.bench.figures import need_matplotlib
    from thinwire.bench.records import for_page
    from thinwire.bench.studies import QUICK_STUDY, STUDY
    from thinwire.bench.study import Bench
    from thinwire.data.cache import cache_folder
    from thinwire.train.strategy_argument import strategy_from

    # 1. The study, narrowed and widened by the flags.
    study: Study = QUICK_STUDY if options.quick else STUDY
    if options.only:
        study = replace(
            study,
            contestants=chosen(
                options.only, study.contestants if options.quick else STUDY.contestants
            ),
        )
    if options.add:
        more = tuple(
            ours(each, made := strategy_from(each), made.when.period or 1) for each in options.add
        )
        study = replace(study, contestants=(*study.contestants, *more))
    if options.link:
        by_name = {each.name: each for each in study.networks}
        if unknown := [name for name in options.link if name not in by_name]:
            raise BenchError(f"no link is called {unknown[0]!r}; there are: {'; '.join(by_name)}")
        study = replace(study, networks=tuple(by_name[name] for name in options.link))
    if options.seeds is not None:
        if options.seeds < 1:
            raise BenchError(f"--seeds {options.seeds}: at least 1")
        study = replace(study, seeds=options.seeds)
    if options.list:
        return _list(study, output)
    # Before hours of measuring.
    need_matplotlib()
    parts, folder = (
        _parts(study, options.part, output),
        options.out or Path("runs", "bench-quick" if options.quick else "bench"),
    )
    # 2. Measure; records are on disk as soon as they are made.
    bench = Bench(study, folder, cache_folder() / "rivals", output.note, options.retry)
    _one_model(bench)
    with ended_by_signals():
        measured = bench.run(typed(options), parts)
    # 3. The page and the table.
    records = for_page(measured)
    from thinwire.bench.report import bench_page, summary, write

    page = folder / "report.html"
    write(bench_page(records), page)
    rows = summary(records)
    output.result(
        {"out": str(folder), "report": str(page), "rows": rows},
        f"{as_table(rows)}\n\n{left_out(measured)}{page}",
    )
    return 0


def _parts(study: Study, requested: list[str] | None, output: CommandOutput) -> list[str]:
    """List the parts to measure: the proof only where its contestant and its link take part."""
    from thinwire.bench.study import PARTS

    # The proof is a whole run of one contestant over one link: both must be chosen.
    name, network = study.proof
    if name in [each.name for each in study.contestants] and network.name in [
        each.name for each in study.networks
    ]:
        return requested or list(PARTS)
    if "proof" in (requested or ()):
        raise BenchError(
            f"--part proof is a whole run of {name!r} over {network.name!r}: choose them, too, by "
            "--only and --link"
        )
    if requested is None:
        output.note(
            f"no proof: it is a whole run of {name!r} over {network.name!r}, which are not both "
            "chosen"
        )
    return requested or [part for part in PARTS if part != "proof"]


def _one_model(bench: Bench) -> None:
    """Refuse a folder of which no page could be made once all is measured."""
    from thinwire.bench.records import curve_models

    mine = bench.curve_parameters
    if others := sorted(curve_models(bench.records) - {mine}):
        raise BenchError(
            f"{bench.folder} holds curves of a model of {others[0]:,} parameters, and these would "
            f"be of one of {mine:,}: "
            "no page could show both. Give this study an --out of its own"
        )


def typed(options: argparse.Namespace) -> str:
    """Return the command that measures the same on any machine: a file of --add is named without
    its folder; its text is in the records."""
    words = [PROGRAM, "bench", *(["--quick"] if options.quick else [])]
    for flag in ("only", "add", "link", "part"):
        for value in getattr(options, flag) or ():
            words += [f"--{flag}", value.rpartition(os.sep)[2] if flag == "add" else value]
    return shlex.join(
        [*words, *(["--seeds", str(options.seeds)] if options.seeds is not None else [])]
    )


def _list(study: Study, output: CommandOutput) -> int:
    rows = [
        {"name": each.name, "module": each.module, "settings": each.settings}
        for each in study.contestants
    ]
    links = [network.name for network in study.networks]
    lines = [
        f"{each.name:<42}{'thinwire' if each.ours else 'rival: ' + each.module}"
        for each in study.contestants
    ]
    output.result({"contestants": rows, "links": links}, "\n".join([*lines, "", *links]))
    return 0


def left_out(measured: list[dict[str, Any]]) -> str:
    """Return a line on the curves that are not shown yet; empty where all are shown."""
    from thinwire.bench.page import so_many
    from thinwire.bench.records import early

    if not (incomplete := early(measured)):
        return ""
    seeds = ", ".join(map(str, sorted({each["seed"] for each in incomplete})))
    return (
        f"left out: {so_many(len(incomplete), 'curve')} of seeds that not every contestant has yet "
        f"({seeds}); `thinwire bench` runs them\n"
    )


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return each link's contestants, the quickest to the target first."""
    head = ("link", "contestant", "", "step s", "fewer", "nats", "gap", "to target", "over DDP")
    lines = [head]
    for row in rows:
        lines.append(
            (
                row["link"] or "–",
                f"{'★ ' if row['winner'] else ''}{row['name']}",
                row["kind"],
                _shown(row["step_mean_s"], "{:.3f}"),
                _shown(row["fewer_bytes"], "{:,.1f}x"),
                _shown(row["final_nats"], "{:.4f}"),
                _shown(row["gap"], "{:+.1%}"),
                _shown(row["time_to_target_s"], "{:,.0f} s"),
                _shown(row["speedup"], "{:.2f}x"),
            )
        )
    failed = [
        f"{row['name']} ({row['link'] or 'curve'}): {error}"
        for row in rows
        for error in row["errors"]
    ]
    return "\n".join([*columns(lines, left=3), *([""] if failed else []), *failed])


def _shown(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
