"""The GPT: causal, seeded, as large as its configuration says, and able to learn."""

from __future__ import annotations

import math

import pytest
import torch

from thinwire.models.gpt import GPT, GPTConfig

SMALL = GPTConfig(vocab=11, context=8, layers=2, heads=2, width=16)


def model(config: GPTConfig = SMALL, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config)


def tokens(rows: int = 3, length: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randint(SMALL.vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_parameters_are_those_of_the_sizes(tie: bool, bias: bool) -> None:
    config = GPTConfig(vocab=11, context=8, layers=3, heads=2, width=16, tie=tie, bias=bias)
    c = config.width
    expected = (
        config.layers * (12 * c * c + 2 * c)
        + config.vocab * c * (1 if tie else 2)
        + config.context * c
        + c
    )
    if bias:
        expected += config.layers * (9 * c + 2 * c) + c
    built = model(config)
    assert sum(weight.numel() for weight in built.parameters()) == expected
    assert (built.head.weight is built.embed.weight) == tie
    assert any(name.endswith("bias") for name, _ in built.named_parameters()) == bias


@pytest.mark.parametrize("at", range(8))
def test_no_position_sees_a_later_token(at: int) -> None:
    before, after = tokens(), tokens()
    after[:, at] = (after[:, at] + 1) % SMALL.vocab
    gpt = model()
    moved = (gpt(before)[0] - gpt(after)[0]).detach().abs().amax(dim=(0, 2))
    assert float(moved[:at].sum()) == 0
    assert float(moved[at:].min()) > 0


def test_rows_do_not_mix() -> None:
    gpt = model()
    alone = torch.cat([gpt(row[None])[0] for row in tokens()])
    torch.testing.assert_close(gpt(tokens())[0], alone)


def test_a_shorter_row_is_a_prefix() -> None:
    gpt = model()
    torch.testing.assert_close(gpt(tokens()[:, :5])[0], gpt(tokens())[0][:, :5])


def test_a_new_model_knows_nothing() -> None:
    _, loss = model()(tokens(), tokens(seed=2))
    assert abs(loss.item() - math.log(SMALL.vocab)) < 0.1


def test_the_loss_is_the_mean_over_the_positions_that_count() -> None:
    gpt, targets = model(), tokens(seed=2)
    targets[:, ::2] = -1
    logits, loss = gpt(tokens(), targets)
    chances = logits.log_softmax(-1)[:, 1::2].gather(-1, targets[:, 1::2, None])
    torch.testing.assert_close(loss, -chances.mean())


def test_branches_start_smaller_where_they_join_the_stream() -> None:
    deep = model(GPTConfig(layers=8, width=128))
    for name, weight in deep.named_parameters():
        if weight.dim() == 2:
            expected = 0.02 / math.sqrt(16) if "project" in name else 0.02
            assert weight.std().item() == pytest.approx(expected, rel=0.05)


def test_the_seed_fixes_the_weights() -> None:
    same, other = model(seed=3).state_dict(), model(seed=4).state_dict()
    again = model(seed=3).state_dict()
    assert all(same[name].equal(again[name]) for name in same)
    assert not same["embed.weight"].equal(other["embed.weight"])


def test_every_parameter_gets_a_gradient() -> None:
    gpt = model()
    gpt(tokens(), tokens(seed=2))[1].backward()
    assert all(weight.grad is not None and bool(weight.grad.any()) for weight in gpt.parameters())


def test_it_learns_to_copy_a_batch() -> None:
    gpt = model()
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    text = tokens(length=9)
    for _ in range(60):
        loss = gpt(text[:, :-1], text[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3
    assert gpt.generate(text[:, :4], 5, temperature=0)[:, 4:].eq(text[:, 4:]).float().mean() > 0.8


@pytest.mark.parametrize("temperature", [0, 0.7, 1.0])
def test_generation_keeps_the_prompt_and_follows_the_generator(temperature: float) -> None:
    gpt, prompt = model(), tokens(length=6)
    first, again = (
        gpt.generate(prompt, 7, temperature, torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert first.shape == (3, 13)
    assert first[:, :6].equal(prompt)
    assert first.equal(again)
    assert int(first.max()) < SMALL.vocab


def test_generation_reads_the_last_context_of_a_long_prompt() -> None:
    gpt, prompt = model(), tokens(length=20)
    assert gpt.generate(prompt, 1, temperature=0)[:, -1].equal(
        gpt(prompt[:, -8:])[0][:, -1].argmax(-1)
    )


def test_what_cannot_be_built_or_run_is_refused() -> None:
    for name in ("vocab", "context", "layers", "heads", "width"):
        with pytest.raises(ValueError, match=f"{name}=0"):
            GPTConfig(**{name: 0})
    with pytest.raises(ValueError, match="cannot share 10 values"):
        GPTConfig(width=10, heads=4)
    gpt = model()
    with pytest.raises(ValueError, match="rows of 9 tokens"):
        gpt(tokens(length=9))
    with pytest.raises(ValueError, match="no tokens"):
        gpt.generate(tokens(length=0), 1)
    for asked in ({"new_tokens": -1}, {"new_tokens": 1, "temperature": -0.5}):
        with pytest.raises(ValueError, match="neither can be negative"):
            gpt.generate(tokens(), **asked)


def test_parameters_keep_their_names() -> None:
    """They key random draws of codecs, and saved weights."""
    names = {name.partition(".")[0] for name, _ in GPT(GPTConfig()).named_parameters()}
    assert names == {"embed", "place", "blocks", "norm"}  # the head is the embedding
