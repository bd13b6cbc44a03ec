"""Find what FSDP2 gathers and scatters together in a model, and judge what may encode it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from thinwire.core import Codec, Part, RankContext, Spec
from thinwire.errors import AttachError

TORCH_TRIED: tuple[str, ...] = ("2.13",)
"""The versions of torch whose private names this reads, and with which it was tried."""

_SIDE = 64  # of the matrix by which codecs are judged
_CONTEXT = RankContext(0, (0, 1), 0, 0)


@dataclass(frozen=True)
class Unit:
    """The parameters that FSDP gathers in one collective, and what this reads of torch's group.

    name, module: the module that `fully_shard` was applied to.
    group, ranks: its shard group, and that group's ranks in the whole world.
    device: where its buffers live.
    dtypes: of what it gathers, by name.
    shard_numel: values in a rank's shard, padding among them.
    secondary: the ranks among which weights stay after the forward pass, where these are fewer.
    strange: a kind of tensor that gathers by itself, if one is there.
    replaced: the collectives that are not torch's own.
    """

    name: str
    module: Any
    group: Any
    ranks: tuple[int, ...]
    device: torch.device
    dtypes: tuple[str, ...]
    floating: bool
    shard_numel: int
    secondary: tuple[int, ...]
    strange: str
    replaced: tuple[str, ...]

    @property
    def fact(self) -> list[Any]:
        """Return what all ranks must hold alike."""
        return [self.name, self.shard_numel, list(self.dtypes), len(self.secondary)]


def refuse_other_torch(version: str) -> None:
    """Raise unless this was tried with a version of torch.

    Raises:
        AttachError: it was not; the versions are named.

    Example:
        >>> refuse_other_torch("2.13.0+cpu")
    """
    if not any(version.startswith(f"{tried}.") for tried in TORCH_TRIED):
        raise AttachError(
            "thin_collectives replaces parts of FSDP2 that torch may move: it was tried with torch "
            f"{', '.join(TORCH_TRIED)}, and this is {version}. Install one of those, or shard with "
            "torch's own collectives"
        )


def units_of(model: nn.Module) -> list[Unit]:
    """List what FSDP2 gathers together in a model, in the order of its modules.

    Raises:
        AttachError: another torch; no module in FSDP2; one whose parameters lie on several meshes,
            or on one that only replicates.
    """
    refuse_other_torch(torch.__version__)
    # These names are torch's own; the version has just been checked.
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo

    groups: dict[int, tuple[str, Any, Any]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, FSDPModule):
            continue
        held = module._get_fsdp_state()._fsdp_param_groups
        shown = name or "the model"
        if len(held) > 1:
            raise AttachError(
                f"{shown}: shard_placement_fn puts its parameters on {len(held)} meshes, and torch "
                "takes one custom collective a module: call fully_shard on the modules of each mesh"
            )
        for group in held:
            if not isinstance(group.mesh_info, FSDPMeshInfo):
                raise AttachError(
                    f"{shown} is replicated, not sharded, so nothing is gathered or scattered: in "
                    "DistributedDataParallel use thinwire.ddp_hook"
                )
            groups.setdefault(id(group), (shown, module, group))
    if not groups:
        raise AttachError(
            "thin_collectives takes a model in FSDP2, and no module of this "
            f"{type(model).__name__} is: call torch.distributed.fsdp.fully_shard on its modules "
            "first"
        )
    return [_unit(name, module, group) for name, module, group in groups.values()]


def _unit(name: str, module: Any, group: Any) -> Unit:
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives as torchs

    params = group.fsdp_params
    dtypes = {group.mp_policy.param_dtype or param.sharded_param.dtype for param in params}
    later = group.post_forward_mesh_info
    fewer = later is not None and later.shard_mesh_size < group.mesh_info.shard_mesh_size
    comms = {
        "all-gather": (group._all_gather_comm, torchs.DefaultAllGather),
        "reduce-scatter": (group._reduce_scatter_comm, torchs.DefaultReduceScatter),
    }
    return Unit(
        name,
        module,
        group.mesh_info.shard_process_group,
        tuple(dist.get_process_group_ranks(group.mesh_info.shard_process_group)),
        group.device,
        tuple(sorted(str(dtype) for dtype in dtypes)),
        all(dtype.is_floating_point for dtype in dtypes),
        sum(param.padded_sharded_param_size.numel() for param in params),
        tuple(dist.get_process_group_ranks(later.shard_process_group)) if fewer else (),
        next(
            (
                type(param._sharded_local_tensor).__name__
                for param in params
                if hasattr(param._sharded_local_tensor, "fsdp_pre_all_gather")
            ),
            "",
        ),
        tuple(name for name, (comm, default) in comms.items() if type(comm) is not default),
    )


def unit_refusals(units: Sequence[Unit], node_size: Any, *, weights: bool) -> list[str]:
    """Return why these units cannot have encoded collectives; nothing where they can.

    Args:
        weights: the all-gathers are to be encoded, too.
    """
    # 1. The node size.
    if type(node_size) is not int or node_size < 1:
        return [f"node_size={node_size!r}: expected an integer, at least 1: the ranks of a node"]
    reasons = [
        f"node_size={node_size}: a shard group of {world} ranks is no multiple of it; every node "
        "has as many ranks"
        for world in sorted({len(unit.ranks) for unit in units})
        if world % node_size and world > 1
    ]
    # 2. What torch or others have replaced already.
    reasons += [
        f"{unit.name} has a custom {comm} already: close what has set it first"
        for unit in units
        for comm in unit.replaced
    ]
    if not weights:
        return reasons
    # 3. What is gathered, and where it stays.
    for unit in units:
        if len(unit.dtypes) > 1 or not unit.floating:
            reasons.append(
                f"{unit.name} gathers {' and '.join(unit.dtypes)} together, which torch hands over "
                "as bytes without a type: shard modules of one floating-point type, or give "
                "MixedPrecisionPolicy(param_dtype=…)"
            )
        if unit.strange:
            reasons.append(
                f"{unit.name} holds a {unit.strange}, which encodes for the all-gather by itself: "
                "leave weights=None"
            )
        if unit.secondary and len(unit.secondary) != node_size:
            reasons.append(
                f"{unit.name}: reshard_after_forward={len(unit.secondary)} keeps weights among "
                f"{len(unit.secondary)} ranks, and node_size={node_size}: give both the same number"
            )
    return reasons


def codec_refusals(argument: str, codec: Any) -> list[str]:
    """Return why a codec cannot encode flat buffers without names; nothing where it can.

    Args:
        argument: "weights" or "gradients".

    Example:
        >>> from thinwire.what import topk, uniform
        >>> codec_refusals("gradients", uniform(4))
        []
        >>> [reason[:50] for reason in codec_refusals("gradients", topk(0.1))]
        ['gradients=topk(k=0.1, per=0) leaves entries out, a']
    """
    if codec is None:
        return []
    if not isinstance(codec, Codec):
        return [f"{argument}={codec!r} is no codec: give one such as uniform(8) of thinwire.what"]
    reason = _packet_reason(codec) or _loss_reason(codec, argument)
    return [f"{argument}={codec!r} {reason}"] if reason else []


def _packet_reason(codec: Codec) -> str | None:
    """Return why a codec does not send one payload of a known size, made of the values alone."""
    # What it remembers would meet other values: the order of buffers is torch's affair.
    leaves = [path for path, _ in codec.init(_flat(), _CONTEXT).walk()]
    if leaves or codec.traits.needs_base:
        held = leaves[0] if leaves else "base"
        return (
            f"keeps state ({held!r}), and FSDP hands over flat buffers without names, whose values "
            "no state can follow: take a codec without state, such as uniform(8)"
        )
    if codec.single_packet_coder is not codec:
        return "sends several packets, and a shard is sent once: take a codec such as uniform(8)"
    if codec.nbytes(_flat()) is None:
        return (
            "sends as many bytes as the data or the rank decides, and all ranks must know them: "
            "take a codec of fixed size, such as uniform(8)"
        )
    return None


def _loss_reason(codec: Codec, argument: str) -> str | None:
    """Return what a codec would lose for good, or not find in a flat buffer."""
    traits = codec.traits
    if traits.drops or traits.partial:
        return (
            "leaves entries out, and no residual would send them later: take a codec that sends "
            "all of them, such as uniform(4)"
        )
    if isinstance(traits.grain, str) or codec.nbytes(_flat()) != codec.nbytes(_matrix()):
        return (
            "goes by the shapes of parameters, and FSDP hands over flat buffers: take one that "
            "works in blocks, such as uniform(8, block=256)"
        )
    if argument == "weights" and traits.randomised:
        return (
            "draws at random: the backward pass gathers weights again, and would get others than "
            "the forward pass. Take rounding='nearest'"
        )
    return None


def _flat() -> Spec:
    return Spec((Part("probe", (_SIDE**2,), 0, "vector"),), 0, _SIDE**2, torch.float32)


def _matrix() -> Spec:
    return Spec((Part("probe", (_SIDE, _SIDE), 0, "matrix"),), 0, _SIDE**2, torch.float32)
