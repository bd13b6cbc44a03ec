"""What other libraries' codecs make of a gradient, each by its public interface, in its own
environment: for `benchmarks.codec_error`.

    python -m benchmarks.rival_codecs bitsandbytes gradients.safetensors said.json

Bytes are the fewest that the library's own decoder can do with: codes, packed where it has them one
a byte, scales as wide as it keeps them, zero points as wide as a code. Tables that do not depend on
the data are not counted.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from thinwire.bench.rivals import hivemind_avg

BITSANDBYTES = "bitsandbytes==0.50.2"
REQUIRES: dict[str, tuple[str, ...]] = {
    "torch": (),
    "torchao": ("torchao==0.18.0",),
    "bitsandbytes": (BITSANDBYTES,),
    "hivemind": (*hivemind_avg.REQUIRES, f"--no-deps {BITSANDBYTES}"),
    "pi-quant": ("pypiquant==4.1.0",),
}
# flights of the same gradient after which a warm start has found what it will find, from any draw
WARM = 40
TURNS = 8  # cold starts, of different seeds, of whose errors the root mean square is taken

Gradient = dict[str, Tensor]


@dataclass
class Said:
    """One codec on the whole gradient.

    kind: what it is to be compared with.
    spans: which tensors it was given at a time.
    error, errors: ||Q(x) - x|| / ||x|| of all tensors together, and of each.
    """

    codec: str
    kind: str
    nbytes: int
    error: float
    errors: dict[str, float]
    spans: list[list[str]] = field(default_factory=list)


def judged(
    codec: str,
    kind: str,
    gradient: Gradient,
    nbytes: int,
    values: Gradient,
    spans: list[list[str]] | None = None,
) -> Said:
    """Errors of what came back."""
    wrong = {
        name: float((values[name].double() - x.double()).norm()) for name, x in gradient.items()
    }
    size = {name: float(x.double().norm()) for name, x in gradient.items()}
    total = (
        sum(each**2 for each in wrong.values()) / sum(each**2 for each in size.values())
    ) ** 0.5
    return Said(
        codec,
        kind,
        nbytes,
        total,
        {name: wrong[name] / size[name] for name in gradient},
        spans or [[name] for name in gradient],
    )


def one_by_one(
    codec: str, kind: str, gradient: Gradient, work: Callable[[Tensor], tuple[int, Tensor]]
) -> Said:
    """A codec that takes a tensor and gives (bytes, what they decode to)."""
    said = {name: work(x.clone()) for name, x in gradient.items()}
    values = {name: value.reshape(gradient[name].shape) for name, (_, value) in said.items()}
    return judged(codec, kind, gradient, sum(nbytes for nbytes, _ in said.values()), values)


def of_torch(gradient: Gradient) -> Iterator[Said]:
    """DDP's communication hooks, and the quantisers of torch.ao."""
    from torch.ao.quantization import HistogramObserver, MinMaxObserver, PerChannelMinMaxObserver
    from torch.distributed.algorithms.ddp_comm_hooks import (
        default_hooks,
        powerSGD_hook,
        quantization_hooks,
    )

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    world = dist.group.WORLD
    for name, kind, hook in (
        ("fp16_compress_hook", "cast fp16", default_hooks.fp16_compress_hook),
        (
            "quantization_pertensor_hook",
            "uniform 8 zero",
            quantization_hooks.quantization_pertensor_hook,
        ),
        (
            "quantization_perchannel_hook",
            "uniform 8 zero",
            quantization_hooks.quantization_perchannel_hook,
        ),
    ):
        yield flights(name, kind, gradient, world, hook, 2)
    for rank in (1, 4, 16):
        cold = []
        for seed in range(TURNS):
            state = powerSGD_hook.PowerSGDState(
                world, rank, start_powerSGD_iter=2, use_error_feedback=False, random_seed=seed
            )
            cold.append(
                flights(
                    f"powerSGD_hook(rank={rank}), cold",
                    f"cold rank {rank}",
                    gradient,
                    state,
                    powerSGD_hook.powerSGD_hook,
                    3,
                )
            )
        yield mean(cold)
        state = powerSGD_hook.PowerSGDState(
            world, rank, start_powerSGD_iter=2, use_error_feedback=False
        )
        name = f"powerSGD_hook(rank={rank}), after {WARM}"
        yield flights(
            name, f"warm rank {rank}", gradient, state, powerSGD_hook.powerSGD_hook, 2 + WARM
        )

    yield one_by_one(
        "Tensor.bfloat16()", "cast bf16", gradient, lambda x: (2 * x.numel(), x.bfloat16().float())
    )
    for observer in (MinMaxObserver, HistogramObserver):

        def per_tensor(x: Tensor, observer: Any = observer) -> tuple[int, Tensor]:
            seen = observer()
            seen(x)
            scale, zero = seen.calculate_qparams()
            return x.numel() + 4 + 1, torch.quantize_per_tensor(
                x, float(scale), int(zero), torch.quint8
            ).dequantize()

        yield one_by_one(
            f"quantize_per_tensor, {observer.__name__}", "uniform 8 zero", gradient, per_tensor
        )

    def per_row(x: Tensor) -> tuple[int, Tensor]:
        rows = x if x.dim() > 1 else x[None]
        seen = PerChannelMinMaxObserver()
        seen(rows)
        scales, zeros = seen.calculate_qparams()
        return x.numel() + len(rows) * (4 + 1), torch.quantize_per_channel(
            rows, scales, zeros, 0, torch.quint8
        ).dequantize()

    yield one_by_one("quantize_per_channel, rows", "uniform 8 zero row", gradient, per_row)
    dist.destroy_process_group()


@dataclass
class Stacked:
    """An all-gather whose future holds one stacked tensor, as NCCL's does and the quantising hooks
    expect; gloo's holds one a rank."""

    work: dist.Work

    def get_future(self) -> torch.futures.Future[Any]:
        return self.work.get_future().then(lambda done: [torch.stack(done.value())])


def flights(name: str, kind: str, gradient: Gradient, state: Any, hook: Any, turns: int) -> Said:
    """A DDP hook under a module whose gradient is the one asked for, on one rank: the last of so
    many steps."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = torch.nn.ParameterList(
                [torch.nn.Parameter(torch.zeros_like(x)) for x in gradient.values()]
            )

        def forward(self) -> Tensor:
            return torch.stack(
                [(held * x).sum() for held, x in zip(self.held, gradient.values(), strict=True)]
            ).sum()

    net = Net()
    names = {id(held): name for held, name in zip(net.held, gradient, strict=True)}
    spans: list[list[str]] = []
    sent = [0]

    def watched(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        spans.append([names[id(each)] for each in bucket.parameters()])
        return hook(state, bucket)

    def counted(function: Any, place: int, answer: Callable[[Any], Any]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            sent[0] += args[place].nbytes
            work = function(*args, **kwargs)
            # what a hook hangs on it then runs here; in gloo's two threads two buckets would wait
            # for ever
            work.get_future().wait()
            return answer(work)

        return call

    ddp = torch.nn.parallel.DistributedDataParallel(net)
    ddp.register_comm_hook(state, watched)
    reduce, gather = (
        counted(dist.all_reduce, 0, lambda work: work),
        counted(dist.all_gather, 1, Stacked),
    )
    with patch.object(dist, "all_reduce", reduce), patch.object(dist, "all_gather", gather):
        for _ in range(turns):
            ddp.zero_grad()
            spans.clear()
            sent[0] = 0
            ddp().backward()
    values = {
        name: held.grad.clone()
        for held, name in zip(net.held, gradient, strict=True)
        if held.grad is not None
    }
    return judged(name, kind, gradient, sent[0], values, [*spans])


def mean(said: list[Said]) -> Said:
    """The same codec by other lots: the root of the mean square of its errors."""
    first, n = said[0], len(said)
    errors = {
        name: (sum(each.errors[name] ** 2 for each in said) / n) ** 0.5 for name in first.errors
    }
    return Said(
        first.codec,
        first.kind,
        first.nbytes,
        (sum(each.error**2 for each in said) / n) ** 0.5,
        errors,
        first.spans,
    )


def of_torchao(gradient: Gradient) -> Iterator[Said]:
    """torchao's tensor kinds, and its prototypes of the OCP and NVIDIA formats."""
    from torchao.prototype.mx_formats.mx_tensor import MXTensor
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
    from torchao.quantization import (
        Float8Tensor,
        Int8Tensor,
        IntxUnpackedToInt8Tensor,
        MappingType,
        PerRow,
        PerTensor,
    )
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm as How
    from torchao.quantization.quantize_.workflows import to_nf4

    def rows(x: Tensor) -> Tensor:
        return x if x.dim() > 1 else x[None]

    for each in (PerRow(), PerTensor()):
        for mapping in (MappingType.SYMMETRIC, MappingType.ASYMMETRIC):

            def int8(x: Tensor, each: Any = each, mapping: Any = mapping) -> tuple[int, Tensor]:
                made = Int8Tensor.from_hp(rows(x), each, mapping)
                zeros = made.scale.numel() if mapping is MappingType.ASYMMETRIC else 0
                return x.numel() + made.scale.nbytes + zeros, made.dequantize()

            sided = " zero row" if isinstance(each, PerRow) else " zero"
            sort = f"uniform 8{sided if mapping is MappingType.ASYMMETRIC else ''}"
            yield one_by_one(
                f"Int8Tensor({type(each).__name__}, {mapping.name})", sort, gradient, int8
            )
        for dtype, kind in ((torch.float8_e4m3fn, "e4m3"), (torch.float8_e5m2, "e5m2")):

            def float8(x: Tensor, each: Any = each, dtype: Any = dtype) -> tuple[int, Tensor]:
                made = Float8Tensor.from_hp(rows(x), dtype, each)
                return x.numel() + made.scale.nbytes, made.dequantize()

            yield one_by_one(
                f"Float8Tensor({kind}, {type(each).__name__})", f"fp8 {kind}", gradient, float8
            )

    for bits, groups in ((8, (64,)), (4, (32, 64, 192)), (3, (64,)), (2, (32, 64))):
        for group in groups:
            for label, mapping, how, zero_bits in (
                ("SYMMETRIC", MappingType.SYMMETRIC, How.AFFINE, 0),
                ("SYMMETRIC_NO_CLIPPING_ERR", MappingType.SYMMETRIC_NO_CLIPPING_ERR, How.AFFINE, 0),
                ("ASYMMETRIC", MappingType.ASYMMETRIC, How.AFFINE, bits),
                ("HQQ_SCALE_ONLY", MappingType.SYMMETRIC, How.HQQ_SCALE_ONLY, 0),
            ):
                for short in (False, True):

                    def intx(
                        x: Tensor,
                        b: int = bits,
                        g: int = group,
                        m: Any = mapping,
                        how: Any = how,
                        z: int = zero_bits,
                        short: bool = short,
                    ) -> tuple[int, Tensor]:
                        made = IntxUnpackedToInt8Tensor.from_hp(
                            x.view(1, -1),
                            (1, g),
                            getattr(torch, f"int{b}"),
                            mapping_type=m,
                            intx_choose_qparams_algorithm=how,
                        )
                        if short:
                            made.scale = made.scale.bfloat16().float()
                        m_groups = made.scale.numel()
                        return (x.numel() * b + 7) // 8 + m_groups * (2 if short else 4) + (
                            m_groups * z + 7
                        ) // 8, made.dequantize()

                    name = (
                        f"IntxUnpackedToInt8Tensor(int{bits}, {group}, {label}, "
                        f"{'bf16' if short else 'fp32'})"
                    )
                    yield one_by_one(
                        name,
                        f"uniform {bits} zero" if zero_bits else f"uniform {bits}",
                        gradient,
                        intx,
                    )

    def nf4(x: Tensor) -> tuple[int, Tensor]:
        made = to_nf4(
            x, 64, 288 if x.dim() > 1 else 9
        )  # of scales of 64 values; 256, its default, must divide their number
        kept = (
            made.quantized_data,
            made.quantized_scalers,
            made.quantization_factor,
            made.scaler_mean,
        )
        return sum(each.nbytes for each in kept), made.get_original_weight()

    yield one_by_one("to_nf4(64, 288)", "nf4", gradient, nf4)
    for dtype, kind in (
        (torch.float8_e4m3fn, "fp8 e4m3"),
        (torch.float8_e5m2, "fp8 e5m2"),
        (torch.float4_e2m1fn_x2, "fp4"),
    ):

        def mx(x: Tensor, dtype: Any = dtype) -> tuple[int, Tensor]:
            made = MXTensor.to_mx(rows(x), dtype, 32)
            return made.qdata.nbytes + made.scale.nbytes, made.dequantize()

        yield one_by_one(f"MXTensor({kind}, 32)", kind, gradient, mx)

    def nv(x: Tensor) -> tuple[int, Tensor]:
        made = NVFP4Tensor.to_nvfp4(
            rows(x), per_tensor_scale=per_tensor_amax_to_scale(x.abs().max())
        )
        return made.qdata.nbytes + made.scale.nbytes + 4, made.dequantize()

    yield one_by_one("NVFP4Tensor(16)", "fp4", gradient, nv)


def of_bitsandbytes(gradient: Gradient) -> Iterator[Said]:
    """Blockwise 8 bits by its maps, and its 4-bit floats, on CPU."""
    from bitsandbytes import functional as bnb

    def kept(state: Any) -> int:
        """Bytes of the scales, and of what they are scaled by."""
        nested = state.state2.absmax.nbytes + 4 if state.state2 is not None else 0
        return int(state.absmax.nbytes) + nested

    maps = {
        "dynamic": (bnb.create_dynamic_map(), "8-bit floats"),
        "linear": (bnb.create_linear_map(), "uniform 8"),
        "fp8 e4m3": (bnb.create_fp8_map(True, 4, 3), "8-bit floats"),
        "fp8 e5m2": (bnb.create_fp8_map(True, 5, 2), "fp8 e5m2"),
    }
    for name, (code, kind) in maps.items():
        for block in (64, 256, 1024, 4096) if name == "dynamic" else (64, 4096):
            for nested in (False, True):

                def blockwise(
                    x: Tensor, code: Any = code, block: int = block, nested: bool = nested
                ) -> tuple[int, Tensor]:
                    said, state = bnb.quantize_blockwise(
                        x.view(-1), code=code, blocksize=block, nested=nested
                    )
                    return said.nbytes + kept(state), bnb.dequantize_blockwise(said, state)

                yield one_by_one(
                    f"quantize_blockwise({name}, {block}, nested={nested})",
                    kind,
                    gradient,
                    blockwise,
                )
    for kind in ("fp4", "nf4"):
        for block in (32, 64, 128, 256, 4096):
            for nested in (False, True):

                def four(
                    x: Tensor, kind: str = kind, block: int = block, nested: bool = nested
                ) -> tuple[int, Tensor]:
                    said, state = bnb.quantize_4bit(
                        x.view(-1), blocksize=block, compress_statistics=nested, quant_type=kind
                    )
                    return said.nbytes + kept(state), bnb.dequantize_4bit(said, state)

                yield one_by_one(
                    f"quantize_4bit({kind}, {block}, compress_statistics={nested})",
                    kind,
                    gradient,
                    four,
                )


def of_hivemind(gradient: Gradient) -> Iterator[Said]:
    """Its compressions; bytes are those of its own message."""
    from hivemind import compression
    from hivemind.compression.base import CompressionInfo

    for name, kind in (
        ("Float16Compression", "cast fp16"),
        ("ScaledFloat16Compression", "cast fp16 zero"),
        ("Uniform8BitQuantization", "uniform 8 zero"),
        ("Quantile8BitQuantization", "table 8"),
        ("BlockwiseQuantization", "8-bit floats"),
    ):

        def through(x: Tensor, name: str = name) -> tuple[int, Tensor]:
            codec = getattr(compression, name)()
            said = codec.compress(x, CompressionInfo.from_tensor(x))
            return len(said.SerializeToString()), codec.extract(said)

        yield one_by_one(name, kind, gradient, through)


def of_piquant(gradient: Gradient) -> Iterator[Said]:
    """One scale and zero point a tensor.

    Its stochastic rounding is unbiased, but all values of a call share one lot, and the few calls
    in which most values go the wrong way make up most of the mean square: that is taken from the
    chances, not from calls.
    """
    import piquant

    for bits, dtype in ((8, torch.quint8), (4, torch.quint4x2), (2, torch.quint2x4)):

        def params(x: Tensor, dtype: Any = dtype) -> tuple[float, int]:
            scale, zero = piquant.torch.compute_quant_params(x, dtype=dtype)
            return float(scale), int(zero)

        def nearest(x: Tensor, dtype: Any = dtype, bits: int = bits) -> tuple[int, Tensor]:
            scale, zero = params(x, dtype)
            said = piquant.torch.quantize(
                x, scale=scale, zero_point=zero, dtype=dtype, round_mode="nearest"
            )
            back = piquant.torch.dequantize(said, scale=scale, zero_point=zero, dtype=torch.float32)
            return (x.numel() * bits + 7) // 8 + 4 + 1, back

        def by_lot(x: Tensor, dtype: Any = dtype, bits: int = bits) -> tuple[int, Tensor]:
            """What is as far off as the root of the mean square of each value's error."""
            scale, zero = params(x, dtype)
            code = x.double() / scale + zero
            held = code.clamp(0, 2**bits - 1)
            up = held - held.floor()
            return (x.numel() * bits + 7) // 8 + 4 + 1, x + scale * (
                up * (1 - up) + (code - held) ** 2
            ).sqrt()

        yield one_by_one(
            f"quantize(uint{bits}, nearest)", f"uniform {bits} zero", gradient, nearest
        )
        yield one_by_one(
            f"quantize(uint{bits}, stochastic)", f"uniform {bits} zero stochastic", gradient, by_lot
        )


LIBRARIES: dict[str, Callable[[Gradient], Iterator[Said]]] = {
    "torch": of_torch,
    "torchao": of_torchao,
    "bitsandbytes": of_bitsandbytes,
    "hivemind": of_hivemind,
    "pi-quant": of_piquant,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("library", choices=LIBRARIES)
    parser.add_argument("gradient", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    said = [asdict(each) for each in LIBRARIES[args.library](load_file(args.gradient))]
    args.out.write_text(json.dumps(said))


if __name__ == "__main__":
    main()
