"""Save real gradients of convolutions: a small network's on Fashion-MNIST (MIT), as Debian ships
it, while it learns.

    python scripts/conv_gradients.py convolutions.safetensors
    # kernels as rows of a matrix, for `benchmarks.codec_error`
    python scripts/conv_gradients.py --matrices matrices.safetensors

Downloads one package (31 MB; needs apt-get) and writes the gradients of three 3 × 3 convolutions,
32 to 128 channels wide, at steps 10 and
200: what `thinwire codecs --gradient` is to be run on for the codecs that see more than two
dimensions.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from thinwire.data.corpus.packages import Registries, files

PACKAGE = "dataset-fashion-mnist"
STEPS, BATCH = (10, 200), 128


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--matrices", action="store_true", help="each kernel as a matrix, one row an output"
    )
    asked = parser.parse_args()
    out: Path = asked.out
    images, labels = dataset()
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    found: dict[str, Tensor] = {}
    for step in range(1, max(STEPS) + 1):
        batch = torch.randint(len(images), (BATCH,))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        if step in STEPS:
            print(f"step {step}: loss {float(loss.detach()):.3f} nats an image", flush=True)
            weights = {
                name: param.grad
                for name, param in model.named_parameters()
                if param.dim() == 4 and param.shape[1] > 1
            }
            seen = {
                name: grad.flatten(1) if asked.matrices else grad
                for name, grad in weights.items()
                if grad is not None
            }
            found |= {f"step{step}.{name}": grad.clone() for name, grad in seen.items()}
        optimizer.step()
    save_file(found, out)
    print(f"{out}: {len(found)} tensors, {sum(each.numel() for each in found.values()):,} values")


def network() -> nn.Module:
    """Four convolutions with group norms, halved twice: 28 × 28 images to 10 logits, 240,000
    parameters."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 32, 1), (32, 64, 2), (64, 128, 2), (128, 128, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.GroupNorm(8, outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def dataset() -> tuple[Tensor, Tensor]:
    """Images (60000, 1, 28, 28), mean 0 and deviation 1, and their labels (60000,)."""
    shop = Registries()
    with tempfile.TemporaryDirectory() as scratch:
        archive = shop.download(shop.find("debian", PACKAGE), Path(scratch))
        packed = {Path(path).name: content for path, content in files(archive)}
    raw = {
        name: gzip.decompress(packed[f"train-{name}.gz"])
        for name in ("images-idx3-ubyte", "labels-idx1-ubyte")
    }
    images = (
        torch.frombuffer(bytearray(raw["images-idx3-ubyte"][16:]), dtype=torch.uint8)
        .view(-1, 1, 28, 28)
        .float()
    )
    labels = torch.frombuffer(bytearray(raw["labels-idx1-ubyte"][8:]), dtype=torch.uint8).long()
    return (images - images.mean()) / images.std(), labels


if __name__ == "__main__":
    main()
