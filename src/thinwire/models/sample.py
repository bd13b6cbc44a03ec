"""Sample from a model: continue a text, or fill its gaps.

    causal    The                                        goes on to the end of the document, or for
              so many tokens
    masked    To be, or not to <mask><mask>              each mask is one token
    spans     To be, or <extra_id_0> that is             each sentinel is a span of any length

The same model, prompt and seed give the same text. Models run as they are: on their device, in
whatever autocast is around.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from thinwire.errors import ModelError
from thinwire.models.build import objective_of, positions_of
from thinwire.models.hugging_face import quiet
from thinwire.models.objective import MASK, sentinel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPTS = {
    "causal": "The ",
    "masked": f"To be, or not to {MASK}{MASK}",
    "spans": (
        f"It is a truth {sentinel(0)}, that a single man in possession of a good {sentinel(1)}, "
        "must be in want of a wife."
    ),
}
SENTINEL = re.compile(r"<extra_id_\d+>")


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | None = None,
    new_tokens: int = 300,
    temperature: float | None = None,
    seed: int = 0,
) -> str:
    """Continue or fill the prompt, as suits the kind of model.

    Args:
        model: causal, masked or an encoder-decoder.
        tokenizer: the one that it was trained with.
        prompt: a text to continue, or one with `<mask>` or `<extra_id_0>`, `<extra_id_1>`, … where
            something is missing; without it one of English.
        new_tokens: the most tokens to add; a mask is always one token.
        temperature: 0 takes the likeliest token, 1 draws as the model predicts. Without it 0.8 for
            what goes on, 0 for what is filled.
        seed: of the random choices.

    Raises:
        ModelError: a prompt that is empty, too long or without a gap; a negative count or
            temperature.

    Example:
        >>> from thinwire.data.corpus.text import Text
        >>> from thinwire.data.corpus.tokenizer import tokenizer_from
        >>> from thinwire.models.build import model_from
        >>> specials = ["<|endoftext|>", "<pad>", "<mask>"]
        >>> tokenizer = tokenizer_from("byte", Text("none", (), ()), specials)
        >>> len(sample(model_from("bert-nano", tokenizer, context=16), tokenizer, "To <mask>e"))
        5
    """
    kind = objective_of(model.config)
    prompt = PROMPTS[kind] if prompt is None else prompt
    if kind == "causal":
        return continued(
            model, tokenizer, prompt, new_tokens, 0.8 if temperature is None else temperature, seed
        )
    if kind == "masked":
        return filled(model, tokenizer, prompt, temperature or 0.0, seed)
    return restored(model, tokenizer, prompt, new_tokens, temperature or 0.0, seed)


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    new_tokens: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """Return the prompt and its continuation, until the model ends the document.

    A model with a bounded number of positions sees at least the last half of them: when they are
    used up, it reads that half again and goes on from there, so that a token costs one pass over
    one token, and only now and then one over many.

    Raises:
        ModelError: an empty prompt, a negative count or a negative temperature.
    """
    _check_numbers(new_tokens, temperature)
    ids = _ids(tokenizer, prompt)
    limit = positions_of(model.config)
    remaining = new_tokens
    with _drawing(model, seed):
        while remaining > 0:
            # At the limit the last half is read again; the rest of the positions is free for new
            # tokens.
            seen = ids if limit is None or len(ids) <= limit else ids[-max(1, limit // 2) :]
            # The last one drawn needs no position.
            free = remaining if limit is None else min(remaining, limit - len(seen) + 1)
            more = _generate(model, tokenizer, seen, free, temperature)[len(seen) :]
            ids, remaining = ids + more, remaining - len(more)
            if len(more) < free or more[-1] == tokenizer.eos_token_id:
                break
    return _text(tokenizer, ids)


def filled(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return the text with a token for every `<mask>`. The gap with the surest prediction is filled
    first, and then read.

    Raises:
        ModelError: a text without a mask or longer than the model reads, or a negative temperature.
    """
    _check_numbers(0, temperature)
    mask, limit = tokenizer.mask_token_id, positions_of(model.config)
    ids = _ids(tokenizer, text.replace(MASK, str(tokenizer.mask_token or MASK)))
    if mask not in ids:
        raise ModelError(
            f"the prompt {text!r} has no {MASK}, and this model fills gaps; write {MASK} for each "
            "token that is missing"
        )
    if limit is not None and len(ids) > limit:
        if text == PROMPTS["masked"]:
            ids = ids[-limit:]  # its gaps are at the end
        else:
            raise ModelError(
                f"the prompt has {len(ids):,} tokens, and the model reads {limit:,} at once; cut it"
            )
    # One gap a pass, the surest first: what is filled is read for the others.
    read = torch.tensor([ids], device=model.device)
    generator = torch.Generator().manual_seed(_seed(seed))
    barred = [id_ for id_ in tokenizer.all_special_ids if id_ < len(tokenizer)]
    with _drawing(model, seed), torch.no_grad():
        while (gaps := (read[0] == mask).nonzero()[:, 0]).numel():
            scores = (
                model(input_ids=read).logits[0, gaps, : len(tokenizer)].float().cpu()
            )  # (gaps, V)
            # A gap is never filled with a special token.
            scores[:, barred] = -torch.inf
            sure, likeliest = scores.softmax(-1).max(-1)
            gap = int(sure.argmax())
            token = likeliest[gap]
            if temperature:
                token = torch.multinomial(
                    (scores[gap] / temperature).softmax(-1), 1, generator=generator
                )[0]
            read[0, gaps[gap]] = token.to(read.device)
    return _text(tokenizer, read[0].tolist())


def restored(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    new_tokens: int = 300,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """Return the text with a span for every `<extra_id_0>`, `<extra_id_1>`, …; an empty span where
    the model writes none.

    Raises:
        ModelError: a text without a sentinel, a negative count or a negative temperature.
    """
    _check_numbers(new_tokens, temperature)
    ids = _ids(tokenizer, text)
    gaps = {id_ for id_ in ids if _is_sentinel(tokenizer, id_)}
    if not gaps:
        first = sentinel(0)
        raise ModelError(
            f"the prompt {text!r} has no {first}, and this model fills gaps; write {first}, "
            f"{sentinel(1)}, … where words are missing"
        )
    written: list[int] = []
    if new_tokens:
        with _drawing(model, seed):
            written = _generate(
                model, tokenizer, [*ids, tokenizer.eos_token_id], new_tokens, temperature
            )
    # Cut what was written at its sentinels, and put each span in its gap.
    spans: dict[int, list[int]] = {}
    span: list[int] = []  # what comes before the first sentinel belongs nowhere
    for id_ in written:
        if _is_sentinel(tokenizer, id_):
            span = []
            spans.setdefault(id_, span)  # the first one written for a gap counts
        else:
            span.append(id_)
    return _text(
        tokenizer, [each for id_ in ids for each in (spans.get(id_, []) if id_ in gaps else [id_])]
    )


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    most: int,
    temperature: float,
) -> list[int]:
    """Call `generate` of transformers with every setting that a model's own folder could have
    changed."""
    read = torch.tensor([ids], device=model.device)
    options: dict[str, Any] = {"do_sample": False}
    if temperature:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    unknown = list(range(len(tokenizer), model.config.vocab_size))  # embeddings that no token has
    if model.config.is_encoder_decoder:
        options["decoder_start_token_id"] = tokenizer.pad_token_id
    out: torch.Tensor = model.generate(  # type: ignore[operator, unused-ignore] # transformers leaves it untyped
        read,
        attention_mask=torch.ones_like(read),
        max_new_tokens=most,
        num_beams=1,
        repetition_penalty=1.0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id
        if tokenizer.pad_token_id is not None
        else tokenizer.eos_token_id,
        suppress_tokens=unknown or None,
        synced_gpus=False,  # else FSDP makes it ask every rank there is; those of a replica agree
        **options,
    )
    generated: list[int] = out[0].tolist()
    return generated


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Return the ids of a text without the tokens that some tokenizers add around it: training rows
    have none."""
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    if not ids:
        raise ModelError("the prompt is empty, and nothing can follow it; give at least a letter")
    return ids


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _is_sentinel(tokenizer: PreTrainedTokenizerBase, id_: int) -> bool:
    return SENTINEL.fullmatch(str(tokenizer.convert_ids_to_tokens(id_))) is not None


def _check_numbers(new_tokens: int, temperature: float) -> None:
    if new_tokens < 0 or not 0 <= temperature < float("inf"):
        raise ModelError(
            f"new_tokens={new_tokens}, temperature={temperature:g}: neither can be negative or "
            "endless; take 0 or more"
        )


def _seed(seed: int) -> int:
    return seed & ((1 << 63) - 1)


@contextmanager
def _drawing(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Inside the block: no dropout, no notes, and torch's own generators seeded, since `generate`
    accepts no others."""
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with quiet(), torch.random.fork_rng(devices):
        torch.manual_seed(_seed(seed))
        model.train(False)
        try:
            yield
        finally:
            model.train(training)
