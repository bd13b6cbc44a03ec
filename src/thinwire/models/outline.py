"""Make a model that no rank holds whole: its shapes first, then each rank's own rows of weights.

    outline = outline_of("llama-1b", tokenizer, context=1024)
    model = outline.empty()               shapes on the meta device, to be sharded
    values, buffers = outline.rows(rows)  what this rank keeps of every parameter, on the CPU

A preset gets the weights that the same seed gives it unsharded: it is built on the CPU block by
block, and of each block only this rank's rows are kept. So a rank holds its rows, one block, and
what is in no block (embeddings, head). Saved weights are read from safetensors by rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thinwire.errors import ModelError
from thinwire.models.build import fitting, objective_of
from thinwire.models.hugging_face import auto_class, quiet, reason
from thinwire.models.presets import tried

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
Rows = Callable[[int], tuple[int, int]]
"""From how many rows a parameter has to the first and the end of those that a rank keeps."""


def outline_of(spec: str, tokenizer: PreTrainedTokenizerBase, context: int) -> Outline:
    """Return the outline of the model that `spec` names; see `build.model_from`.

    Raises:
        ModelError: as `model_from`, or saved weights cannot be read by rows.
    """
    config, location, local = fitting(spec, tokenizer, context)
    if not location:
        tried(spec, config)
    return Outline(spec, config, location, local)


@dataclass(frozen=True, eq=False)
class Outline:
    """A model before it has weights.

    Args:
        spec: how the user calls it.
        config: its configuration.
        location: the folder, or the hub's name of it, where weights are; "" for a preset.
        local: whether the weights must be on this machine.
    """

    spec: str
    config: PreTrainedConfig
    location: str
    local: bool

    def empty(self) -> PreTrainedModel:
        """Return the model on the meta device.

        Raises:
            ModelError: sizes that do not go together, or weights that are stored in a form which
                only the whole model can be made of.
        """
        with torch.device("meta"):
            model = self._made()
        must_be_plain(self.spec, model)
        model.train()
        return model

    def rows(self, rows: Rows) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return this rank's rows of every parameter by name, and all buffers.

        The numbers that a preset's weights are drawn from are torch's: `torch.manual_seed` before.

        Raises:
            ModelError: weights are missing or have another shape, or cannot be drawn by blocks.
        """
        shapes = self.empty()
        blocks = {type(block) for block in blocks_of(shapes)}
        own_rows: dict[int, Tensor] = {}
        with by_blocks(blocks, rows, own_rows, drawn=not self.location):
            model = self._made()
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        if self.location:
            return self._saved(shapes, rows), buffers
        values = {
            name: own_rows[id(param)] if id(param) in own_rows else _cut(param, rows)
            for name, param in model.named_parameters()
        }
        return values, buffers

    def _made(self) -> PreTrainedModel:
        options = {"dtype": torch.float32} if self.location else {}
        try:
            with quiet():
                model: PreTrainedModel = auto_class(objective_of(self.config)).from_config(
                    self.config, **options
                )
                self._takes_generation(model)
        except ModelError:
            raise
        except Exception as error:  # sizes that do not go together show in many ways
            raise ModelError(f"{self.spec} cannot be built by blocks: {reason(error)}") from error
        return model

    def _takes_generation(self, model: Any) -> None:
        """Take over how a saved model generates, where its folder says so."""
        from transformers import GenerationConfig

        if self.location and model.can_generate():
            try:
                model.generation_config = GenerationConfig.from_pretrained(
                    self.location, local_files_only=self.local
                )
            except OSError:  # not every folder has one
                return

    def _saved(self, model: PreTrainedModel, rows: Rows) -> dict[str, Tensor]:
        """Read this rank's rows of all parameters from the files that hold them."""
        from safetensors import SafetensorError, safe_open

        where, values = self._files(), {}
        begin = f"{model.base_model_prefix}."
        names: dict[int, list[str]] = {}
        for name, param in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(param), []).append(name)
        for name, param in model.named_parameters():
            # A tied weight is saved by one of its names, a bare model's without the prefix.
            tied = names[id(param)]
            stored_as = next(
                (each for one in tied for each in (one, one.removeprefix(begin)) if each in where),
                None,
            )
            if stored_as is None:
                raise ModelError(
                    f"the weights of {self.spec!r} lack {name}, which a {type(model).__name__} "
                    "has; save the whole model, or train without --parallel fsdp"
                )
            try:
                with safe_open(where[stored_as], framework="pt") as file:
                    saved = file.get_slice(stored_as)
                    if list(saved.get_shape()) != list(param.shape):
                        raise ModelError(
                            f"{stored_as} of {self.spec!r} has the shape {saved.get_shape()}, and "
                            f"a {type(model).__name__} has {list(param.shape)}"
                        )
                    low, end = rows(param.shape[0])
                    values[name] = saved[low:end].to(torch.float32)
            except (OSError, SafetensorError) as error:
                raise ModelError(f"{where[stored_as]} cannot be read: {reason(error)}") from error
        return values

    def _files(self) -> dict[str, Path]:
        """Return the file that holds each saved tensor."""
        from safetensors import safe_open
        from transformers.utils.hub import cached_file

        def file_of(name: str, must: bool = True) -> Path | None:
            with quiet():
                path = cached_file(
                    self.location,
                    name,
                    local_files_only=self.local,
                    _raise_exceptions_for_missing_entries=must,
                )
            return None if path is None else Path(path)

        try:
            index = file_of(f"{WEIGHTS}.index.json", must=False)
            if index is not None:
                held = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files = {name: file_of(name) for name in sorted(set(held.values()))}
                return {name: path for name, at in held.items() if (path := files[at]) is not None}
            only = file_of(WEIGHTS)
            assert only is not None, "or it would have raised"
            with safe_open(only, framework="pt") as file:
                return dict.fromkeys(file.keys(), only)
        except Exception as error:  # whatever the hub's client and safetensors raise
            raise ModelError(f"the model {self.spec!r} cannot be read: {reason(error)}") from error


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a model, such as a decoder's layers: those that a list repeats."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len({type(block) for block in module}) == 1:
            inside = list(module[0].children())
            # A block of T5 holds nothing but a list of its layers.
            if len(inside) == 1 and isinstance(inside[0], nn.ModuleList):
                inside = list(inside[0])
            if len(inside) > 1:
                yield from module


def must_be_plain(spec: str, model: Any) -> None:
    """Refuse a model whose saved weights are others than its parameters.

    Raises:
        ModelError: transformers merges or splits weights of this kind of model.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    with quiet():
        converted = get_model_conversion_mapping(model, add_legacy=False)
    if converted:
        raise ModelError(
            f"--parallel fsdp: transformers merges or splits the saved weights of a "
            f"{type(model).__name__} ({spec}), which needs the whole model on one rank; train it "
            "without"
        )


@contextmanager
def by_blocks(
    blocks: set[type], rows: Rows, own_rows: dict[int, Tensor], drawn: bool
) -> Iterator[None]:
    """Let models that are built inside keep this rank's rows of their blocks only.

    Args:
        blocks: classes of blocks.
        rows: which rows.
        own_rows: gets the rows, by the parameter's `id`.
        drawn: whether weights are drawn; else blocks are left without any.
    """
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    made = {kind: kind.__init__ for kind in blocks}  # type: ignore[misc]
    first = PreTrainedModel._initialize_weights
    block_of: dict[int, nn.Module] = {}

    def keep(block: nn.Module) -> None:
        """Keep this rank's rows of a block, and give the memory of the whole back."""
        for param in block.parameters():
            own = _cut(param, rows)
            before = own_rows.get(id(param), own)
            # What a first pass has drawn stays where the second leaves it alone.
            own_rows[id(param)] = torch.where(own.isnan(), before, own)
            param.untyped_storage().resize_(0)

    def build(block: nn.Module, *args: Any, **options: Any) -> None:
        made[type(block)](block, *args, **options)
        for module in block.modules():
            block_of[id(module)] = block
        keep(block)

    def initialise(self: Any, module: nn.Module, *args: Any, **options: Any) -> None:
        block = block_of.get(id(module))
        if block is None or getattr(module, "_is_hf_initialized", False):
            first(self, module, *args, **options)
            return
        # A block's modules come one after the other, and the block last.
        for param in block.parameters():
            if not param.untyped_storage().size():
                param.untyped_storage().resize_(param.numel() * param.element_size())
                param.detach().fill_(torch.nan)
        first(self, module, *args, **options)
        if module is block:
            keep(block)

    try:
        for kind in blocks:
            kind.__init__ = build  # type: ignore[misc]
        PreTrainedModel._initialize_weights = initialise  # type: ignore[method-assign]
        if drawn:
            yield
        else:
            with no_init_weights():
                yield
    finally:
        PreTrainedModel._initialize_weights = first  # type: ignore[method-assign]
        for kind, own in made.items():
            kind.__init__ = own  # type: ignore[misc]


def _cut(param: Tensor, rows: Rows) -> Tensor:
    low, end = rows(param.shape[0])
    return param.detach()[low:end].clone()
