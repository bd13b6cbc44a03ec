"""What codecs make of a tensor: exact where nothing is lost, bytes as announced, and files that
cannot be read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from thinwire.core import RankContext
from thinwire.errors import DataError
from thinwire.planner.codecs import Figures, frontier, gaussian, laid, measured, read, speed
from thinwire.what import feedback, identity, lowrank, topk, uniform


def test_what_loses_nothing_has_no_error() -> None:
    row = measured(identity(), gaussian(1 << 12), 10.0)
    assert (row.bits, row.error) == (32.0, 0.0)
    assert row.cosine == pytest.approx(1.0)
    assert row.decode_gb_s is not None


@pytest.mark.parametrize("codec", [uniform(4), topk(0.1), lowrank(2), feedback(uniform(2))])
def test_bytes_and_errors_are_the_codecs(codec: object) -> None:
    tensors = gaussian(1 << 12)
    x, spec = laid(tensors)
    row = measured(codec, tensors, 10.0)  # type: ignore[arg-type]
    assert row.nbytes == codec.nbytes(spec)  # type: ignore[attr-defined]
    assert row.bits == 8 * row.nbytes / x.numel()
    assert 0 < row.error < 1.3
    assert row.encode_ratio == row.encode_gb_s / 10
    assert (row.decode_gb_s is None) == isinstance(codec, lowrank)


def test_a_speed_says_up_to_which_link_a_codec_pays() -> None:
    one = speed(uniform(4, block=0), 1 << 12)
    assert one.decode_ns is not None
    saved = 32 - 8 * (4 + (1 << 11)) / (1 << 12)
    assert one.pays_below_gbits == pytest.approx(saved / (one.encode_ns + one.decode_ns))
    assert speed(identity(), 1 << 12).pays_below_gbits is None
    assert speed(lowrank(2), 1 << 12).decode_ns is None


def test_an_error_by_hand() -> None:
    x = torch.tensor([[0.0, 1.0], [-7.0, 0.4]])
    row = measured(uniform(4, block=0), {"w": x}, 1.0)  # Δ = 1: only 0.4 moves, to 0
    assert row.error == pytest.approx(0.4 / float(x.norm()), rel=1e-5)


def test_heavy_tails_are_heavy() -> None:
    kurtosis = [
        float((x**4).mean() / (x**2).mean() ** 2)
        for x in (gaussian(1 << 18, heavy)["matrix"] for heavy in (False, True))
    ]
    assert 2.8 < kurtosis[0] < 3.2
    assert kurtosis[1] > 6


def test_the_frontier() -> None:
    rows = [
        Figures(name, 0, bits, error, 0, 0, None, 0, None)
        for name, bits, error in (("a", 8, 0.1), ("b", 4, 0.3), ("c", 6, 0.4), ("d", 2, 0.9))
    ]
    assert [row.codec for row in frontier(rows)] == ["d", "b", "a"]


def test_roles_follow_shapes_and_names() -> None:
    _, spec = laid({"bias": torch.ones(3), "embed.weight": torch.ones(2, 2), "w": torch.ones(2, 2)})
    assert [part.role for part in spec.parts] == ["vector", "embedding", "matrix"]
    assert RankContext(0, (0,), 0, 0).world == 1


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_saved_gradients_are_read(suffix: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"grad{suffix}", {"w": torch.randn(4, 4), "steps": torch.tensor(3)}
    save_file(table, path) if suffix == ".safetensors" else torch.save(table, path)
    assert read(path)["w"].equal(table["w"])
    assert list(read(path)) == ["w"]


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda path: path.write_bytes(b"no gradient"), "no gradient can be read"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: torch.save({"steps": torch.tensor(3)}, path), "no tensor of floating point"),
        (lambda path: torch.save({"w": torch.tensor([float("nan")])}, path), "not finite"),
        (lambda path: torch.save([1, 2], path), "not tensors by name"),
    ],
)
def test_what_is_no_gradient(made: object, told: str, tmp_path: Path) -> None:
    made(tmp_path / "grad.pt")  # type: ignore[operator]
    with pytest.raises(DataError, match=told):
        read(tmp_path / "grad.pt")
