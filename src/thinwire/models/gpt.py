"""Build a small GPT in plain torch for tests and benchmarks: GPT-2's blocks with pre-normalisation
and learned positions.

    x = embed(token) + place(position)
    x = x + attention(norm(x));  x = x + mlp(norm(x))      layers times
    logits = norm(x) @ embed.T

(Radford et al. 2019, "Language models are unsupervised multitask learners"; after the layout of
Karpathy's nanoGPT.)
Shapes: B rows, T positions, C = width, H heads, V = vocab.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (torch's own name for it)


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a `GPT`; the default has 0.8 M parameters and reads bytes.

    Args:
        vocab: how many tokens there are; 256 for bytes.
        context: the longest row that the model reads, in tokens.
        layers: how many blocks.
        heads: attention heads in each block; they share `width` evenly.
        width: values to a position between the blocks.
        tie: let the output use the embedding's matrix, which saves vocab × width parameters.
        bias: give linears and norms a bias.

    Raises:
        ValueError: a size below 1, or a width that the heads cannot share evenly.

    Example:
        >>> GPTConfig(width=100, heads=3)
        Traceback (most recent call last):
        ...
        ValueError: GPTConfig(width=100, heads=3): 3 heads cannot share 100 values evenly;
        take a width that 3 divides
    """

    vocab: int = 256
    context: int = 128
    layers: int = 4
    heads: int = 4
    width: int = 128
    tie: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab", "context", "layers", "heads", "width"):
            if (size := getattr(self, name)) < 1:
                raise ValueError(
                    f"GPTConfig({name}={size}): a model has at least 1 of it; take {name}=1 or more"
                )
        if self.width % self.heads:
            raise ValueError(
                f"GPTConfig(width={self.width}, heads={self.heads}): {self.heads} heads cannot "
                f"share {self.width} values evenly; "
                f"take a width that {self.heads} divides"
            )


class Attention(nn.Module):
    """Causal self-attention: each position takes the mean of the values before it, weighted by
    softmax(q·k / sqrt(C/H))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.inputs = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.project = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = (
            self.inputs(x)
            .view(rows, length, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )  # each (B, H, T, C/H)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.project(mixed.transpose(1, 2).reshape(rows, length, width))
        return out


class MLP(nn.Module):
    """Two linear layers with a GELU between them; the hidden width is four times the width."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.project = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(F.gelu(self.expand(x)))
        return out


class Block(nn.Module):
    """Attention, then an MLP, each added to its input."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class GPT(nn.Module):
    """A decoder-only transformer over tokens.

    Weights start as GPT-2's: normal with deviation 0.02, and 0.02 / sqrt(2 layers) where a branch
    joins the stream, so that the stream's variance does not grow with depth. `torch.manual_seed`
    fixes them.

    Example:
        >>> model = GPT(GPTConfig(context=8, layers=1, heads=2, width=16))
        >>> tokens = torch.tensor([list(b"thinwire")])
        >>> logits, loss = model(tokens, tokens)
        >>> logits.shape, loss.shape
        (torch.Size([1, 8, 256]), torch.Size([]))
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab, config.width)
        # a parameter's name keys random draws and saved weights, so this one stays
        self.add_module("place", nn.Embedding(config.context, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        # With tied weights there is one matrix, and one gradient for both uses of it.
        if config.tie:
            self.head.weight = self.embed.weight
        # GPT-2's start: what adds to the residual stream is smaller by the root of its number of
        # additions.
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.dim() == 2:
                joins = name.endswith("project.weight")
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.layers) if joins else 0.02)

    @property
    def positions(self) -> nn.Embedding:
        """The embedding of a token's place in its row."""
        return cast(nn.Embedding, self.get_submodule("place"))

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the scores of every next token, and with `targets` their mean cross-entropy.

        Args:
            tokens: (B, T) int64, T at most `config.context`.
            targets: (B, T) int64, the token that follows each; -1 where a position does not count.

        Returns:
            logits (B, T, V), and the mean cross-entropy in nats, or None without targets.

        Raises:
            ValueError: rows longer than the context.
        """
        length = tokens.shape[1]
        if length > self.config.context:
            raise ValueError(
                f"GPT was given rows of {length} tokens, but its context is {self.config.context}; "
                f"cut them, or build it with GPTConfig(context={length})"
            )
        x = self.embed(tokens) + self.positions.weight[:length]  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        new_tokens: int,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each row of `prompt`, one token at a time, each sampled from softmax(logits /
        temperature).

        Args:
            prompt: (B, T) int64, T at least 1; the model sees the last `config.context` tokens.
            new_tokens: how many to add.
            temperature: 0 takes the likeliest token; 1 draws as the model predicts.
            generator: where the draws come from; torch's default without it.

        Returns:
            (B, T + new_tokens) int64.

        Raises:
            ValueError: an empty prompt, a negative count or a negative temperature.

        Example:
            >>> prompt = torch.tensor([list(b"To be")])
            >>> GPT(GPTConfig(layers=1)).generate(prompt, new_tokens=3).shape
            torch.Size([1, 8])
        """
        if prompt.shape[1] < 1:
            raise ValueError(
                "generate was given a prompt of no tokens, which nothing can follow; give at "
                "least 1, such as a line end"
            )
        if new_tokens < 0 or temperature < 0:
            raise ValueError(
                f"generate(new_tokens={new_tokens}, temperature={temperature}): neither can be "
                "negative; take 0 or more"
            )
        for _ in range(new_tokens):
            logits = self(prompt[:, -self.config.context :])[0][:, -1]  # (B, V)
            if temperature == 0:
                token = logits.argmax(-1, keepdim=True)
            else:
                token = torch.multinomial(
                    F.softmax(logits / temperature, -1), 1, generator=generator
                )
            prompt = torch.cat((prompt, token), dim=1)
        return prompt
