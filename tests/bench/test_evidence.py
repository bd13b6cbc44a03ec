"""What the study of avoidance claims of its records: held where they say so, denied where they do
not, open where a run is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import evidence
from benchmarks.evidence import (
    BEST,
    BURSTS,
    CLAIMS,
    CONFIRMED,
    OF_BENCH,
    PARALLEL,
    RATES,
    WORLDS,
    between,
    claims,
    local,
    many,
    replicas,
    runs,
    told,
)
from benchmarks.plot_evidence import main as draw
from thinwire.bench.contestants import FULL, TWO_BITS, chosen
from thinwire.how import two_shot
from thinwire.on import gradients
from thinwire.strategy import Strategy
from thinwire.what import identity, uniform
from thinwire.when import every

AS_PAPERS_SAY = {
    PARALLEL: 1.40,
    CONFIRMED[0]: 1.20,
    CONFIRMED[1]: 1.22,
    "H=1": 1.9,
    "H=10": 1.43,
    "H=100": 1.6,
    "4 bits": 1.47,
    "2 bits, H=10": 1.55,
    "2 bits, H=10, feedback": 1.48,
    "3 fragments": 1.47,
    "3 fragments, alpha 0": 1.47,
    **{replicas(1, rate): loss for rate, loss in zip(RATES, (1.39, 1.42, 1.50), strict=True)},
    **{replicas(2, rate): loss for rate, loss in zip(RATES, (1.42, 1.43, 1.44), strict=True)},
    **{replicas(4, rate): loss for rate, loss in zip(RATES, (1.48, 1.47, 1.49), strict=True)},
    **{replicas(8, rate): loss for rate, loss in zip(RATES, (1.55, 1.54, 1.53), strict=True)},
}


def records(losses: dict[str, float], seeds: int = 3) -> list[dict[str, Any]]:
    """Curves with these last losses, in the mean of seeds; two short runs on links."""
    out: list[dict[str, Any]] = [
        {
            "kind": "curve",
            "name": name,
            "seed": seed,
            "error": None,
            "validation": [[1, 5.0], [2, loss + 1e-3 * (seed - 1)]],
        }
        for name, loss in losses.items()
        for seed in range(seeds)
    ]
    short = [
        (BURSTS[0], evidence.NETWORKS[-1], 3.0),
        (BURSTS[1], evidence.NETWORKS[-1], 1.0),
        *(("4 bits", network, 0.4) for network in evidence.NETWORKS),
    ]
    same = {"kind": "whole", "last_losses": 2.5, "validation": [[30, 3.0]], "error": None}
    return out + [
        {
            **same,
            "name": name,
            "link": {"name": network.name},
            "burst_bytes": most,
            "bytes_per_step": 100.0,
        }
        for name, network, most in short
    ]


def verdicts(of: list[dict[str, Any]]) -> dict[str, str]:
    return {said: held for said, _, held in claims(of)}


def test_every_run_of_the_study_is_one_that_a_claim_asks_for() -> None:
    asked = {name for claim in CLAIMS for name in claim.runs} | {
        replicas(world, rate) for world in WORLDS for rate in RATES
    }
    made = {contestant.name for some in runs().values() for contestant in some}
    assert made <= asked
    assert asked - made == {*OF_BENCH.values(), *CONFIRMED, *map(many, WORLDS)}


def test_runs_of_the_bench_are_what_they_are_called_here() -> None:
    dense, four, two = (each.settings["strategy"] for each in chosen(list(OF_BENCH), FULL))
    assert dense == Strategy(every(1), identity(), two_shot(), gradients()).to_toml()
    assert four == local(BEST, what=uniform(4)).to_toml()
    (unkept,) = (each.settings["strategy"] for each in runs()[4] if each.name == "2 bits, H=10")
    assert two == replace(Strategy.from_toml(unkept), what=TWO_BITS).to_toml()


def test_all_claims_hold_of_what_papers_say() -> None:
    assert set(verdicts(records(AS_PAPERS_SAY)).values()) == {"yes"}


@pytest.mark.parametrize(
    ("changed", "denied"),
    [
        (
            {replicas(2, rate): 1.391 + 0.01 * rate for rate in RATES},
            {"data parallel <= 2 < 4 < 8 replicas, each at its best rate of three"},
        ),
        ({PARALLEL: 1.37}, {"2, 4, 8 replicas stand at most 3, 6, 12 % above"}),
        (
            {replicas(1, rate): 1.43 + 0.01 * rate for rate in RATES},
            {
                (
                    "1 < 2 < 4 < 8 replicas, all under the outer optimiser, each at its best rate "
                    "of three"
                )
            },
        ),
        ({"H=1": 1.55}, {"under an outer momentum H=1 is the worst period"}),
        (
            {"H=10": 2.0},
            {
                "under an outer momentum H=1 is the worst period",
                "and worse than H=10 and H=30, which talk 80 times and more",
            },
        ),
        ({"4 bits": 1.49}, {"4-bit deltas are as good as float32's, to 0.5 %"}),
        ({"2 bits, H=10": 1.47}, {"2-bit deltas need feedback"}),
        (
            {"3 fragments": 1.50},
            {"3 fragments, one step late, merged by halves, train as well, to 1 %"},
        ),
        (
            {"3 fragments, alpha 0": 1.50},
            {"the same of what is overwritten at its landing (alpha 0)"},
        ),
        ({CONFIRMED[1]: 1.30}, {"the gap of 4 replicas is smaller at 2.0 M parameters"}),
        (
            {replicas(8, RATES[0]): 1.52},
            {"the best outer rate, between those run, rises with replicas"},
        ),
    ],
)
def test_a_claim_is_denied_by_the_figures(changed: dict[str, float], denied: set[str]) -> None:
    found = verdicts(records(AS_PAPERS_SAY | changed))
    assert {said for said, held in found.items() if held == "no"} == denied


def test_a_claim_of_the_means_that_a_seed_denies_is_told_as_that() -> None:
    def seed(name: str, number: int, loss: float) -> dict[str, Any]:
        return {
            "kind": "curve",
            "name": name,
            "seed": number,
            "error": None,
            "validation": [[1, loss]],
        }

    some = [
        each
        for each in records(AS_PAPERS_SAY)
        if each.get("name") not in ("2 bits, H=10", replicas(8, RATES[0]))
    ]
    for number, (lost, low) in enumerate(((1.55, 1.55), (1.56, 1.55), (1.47, 1.52))):
        some += [seed("2 bits, H=10", number, lost), seed(replicas(8, RATES[0]), number, low)]
    found = verdicts(some)
    assert found["2-bit deltas need feedback"] == "of the mean, 2 of 3 seeds"
    assert (
        found["the best outer rate, between those run, rises with replicas"]
        == "of the mean, 2 of 3 seeds"
    )
    assert [said for said, held in found.items() if held != "yes"] == [
        "2-bit deltas need feedback",
        "the best outer rate, between those run, rises with replicas",
    ]


def test_a_claim_is_open_while_a_run_is_missing() -> None:
    without = {name: loss for name, loss in AS_PAPERS_SAY.items() if name != "H=100"}
    assert [said for said, held in verdicts(records(without)).items() if held == "–"] == [
        "under an outer momentum H=1 is the worst period"
    ]
    assert set(verdicts([]).values()) == {"–"}


def test_links_and_fragments_are_claimed_of_bits_and_bytes() -> None:
    made = records(AS_PAPERS_SAY)
    for figure, other in (("validation", [[30, 3.0000001]]), ("last_losses", 2.5000001)):
        assert (
            verdicts([*made[:-1], made[-1] | {figure: other}])[
                "the link's rate changes no bit of the loss"
            ]
            == "no"
        )
    (cut,) = [each for each in made if each["kind"] == "whole" and each["name"] == "3 fragments"]
    for figure, said in (
        ("burst_bytes", "and a third at most in a step, to 2 %"),
        ("bytes_per_step", "3 fragments send as many bytes, to 2 %"),
    ):
        for much in (1.03, 0.97):
            assert verdicts(made)[said] == "yes"
            assert (
                verdicts(
                    [
                        each if each is not cut else cut | {figure: much * cut[figure]}
                        for each in made
                    ]
                )[said]
                == "no"
            )


def test_a_claim_is_of_the_seeds_that_all_its_runs_have() -> None:
    made = records(AS_PAPERS_SAY)
    more = {**made[0], "name": "2 bits, H=10", "seed": 3, "validation": [[2, 0.5]]}
    assert claims([*made, more]) == claims(made)


def test_who_failed_is_not_counted() -> None:
    made = records(AS_PAPERS_SAY)
    failed = {
        "kind": "curve",
        "name": "H=1",
        "seed": 3,
        "error": "rank 1 was killed",
        "validation": [],
    }
    assert told([*made, failed]) == told(made)


def test_the_picture_is_drawn_of_whatever_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    some = {
        name: loss
        for name, loss in AS_PAPERS_SAY.items()
        if name in ("4 bits", replicas(4, BEST), "H=10")
    }
    (tmp_path / "records.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in records(some))
    )
    draw(str(tmp_path), str(tmp_path / "drawn.svg"))
    assert (tmp_path / "drawn.svg").read_text().count("</svg>") == 1


@pytest.mark.parametrize(
    ("found", "least"),
    [
        ((1.3, 1.2, 1.3), 0.9),
        ((1.2, 1.2, 1.4), 0.7),
        ((1.2, 1.3, 1.5), 0.5),
        ((1.5, 1.3, 1.2), 1.3),
        ((1.3, 1.4, 1.2), 1.3),
        ((1.2, 1.4, 1.3), 0.5),
    ],
)
def test_the_best_rate_lies_between_those_that_were_run(
    found: tuple[float, float, float], least: float
) -> None:
    assert between(*found) == pytest.approx(least)


def test_best_rates_are_of_the_seeds_that_all_numbers_of_replicas_have() -> None:
    made = records(AS_PAPERS_SAY)
    assert claims(
        [
            *made,
            *(
                {**made[0], "name": replicas(2, rate), "seed": 3, "validation": [[2, rate]]}
                for rate in RATES
            ),
        ]
    ) == claims(made)
