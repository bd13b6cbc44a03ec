"""List the functions of the CPU kernels with their arguments, as ctypes calls them."""

from __future__ import annotations

from ctypes import CDLL, c_float, c_int, c_int64, c_uint32, c_void_p
from typing import TypeAlias

Type: TypeAlias = type[c_float] | type[c_int] | type[c_int64] | type[c_uint32] | type[c_void_p]

VERSION = 10
"""Of these arguments, as cpu/level.cpp has it: raised with every change of them."""

_at, _f32, _i32, _i64, _u32 = c_void_p, c_float, c_int, c_int64, c_uint32
_key: list[Type] = [_u32, _u32]
_narrow: list[Type] = [_at, _i32]  # values, and what they come in: 0 fp32, 1 bf16, 2 half
_sum: list[Type] = [*_narrow, _at, _i32, _f32]  # values, a residual and its form, its decay
_grid: list[Type] = [_i64, _i32, _i32]  # values of a block, bits, whether there is no zero
_coding: list[Type] = [_i64, _i64, _i64, _i32, _i32, _i64]
_turn: list[Type] = [_i64, _i64, _f32, _f32, _at]  # values, of a block, their scales, signs
_table: list[Type] = [_at, _at, _i64, _at, _at, _i32]  # levels, edges, codes, bins, steps

FUNCTIONS: dict[str, tuple[Type | None, list[Type]]] = {
    "grid_encode": (None, [*_narrow, _at, _i64, *_grid, _i32, *_key, _at, _i32]),
    "grid_encode_left": (_i32, [*_sum, _i64, *_grid, _i32, *_key, _at, _at, _i32]),
    "grid_decode": (None, [_at, _i64, *_grid, _i32, *_narrow, _i32]),
    "grid_sum_encode": (None, [_at, _i32, _i64, *_grid, _i32, *_key, _at, _i32]),
    "sign_encode": (None, [*_narrow, _i64, _i64, _at, _i32]),
    "sign_encode_left": (_i32, [*_sum, _i64, _i64, _at, _at, _i32]),
    "sign_decode": (None, [_at, _i64, _i64, _i32, *_narrow, _i32]),
    "sign_sum_encode": (None, [_at, _i32, _i64, _i64, _at, _i32]),
    "topk_chunks": (None, [*_narrow, _i64, _i64, _i64, _at, _at, _i32]),
    "topk_chunks_sum": (None, [*_narrow, _at, _f32, _i64, _i64, _i64, _at, _at, _at, _i32]),
    "above": (_i64, [_at, _i64, _u32, _i64, _at, _at, _i32]),
    "places_write": (None, [_at, *_coding, _at]),
    "places_read": (_i32, [_at, *_coding, _at]),
    "places_add": (_i32, [_at, *_coding, _at, _at]),
    "places_leave": (_i32, [_at, _at, _at, _i64, _i64, _i64, _at, _i32]),
    "thin_product": (None, [_at, _i64, _i64, _at, _i64, _i32, _at, _i32]),
    "outer": (None, [_at, _at, _i64, _i64, _i64, _at, _i32]),
    "levels_encode": (
        None,
        [*_narrow, _i64, _i64, _i32, _i32, _f32, *_table, _i32, *_key, _at, _i32],
    ),
    "levels_decode": (None, [_at, _i64, _i64, _i32, _at, _i32, _at, _i32]),
    "natural_encode": (None, [*_narrow, _i64, _i32, *_key, _at, _i32]),
    "natural_decode": (None, [_at, _i64, _i32, _at, _i32]),
    "ternary_encode": (None, [*_narrow, _i64, _i64, _at, _i32, *_key, _at, _i32]),
    "ternary_means": (None, [_at, _i64, _i64, _i32, _at, _at, _at, _i32]),
    "ternary_decode": (None, [_at, _i64, _i64, _i32, _at, _i32]),
    "grid_clips": (None, [_at, _i64, _i64, _f32, _i64, _at, _at, _at, _at, _i32]),
    "dct_tiles": (None, [_at, _i64, _i64, _i64, _i64, _at, _at, _i32]),
    "dct_tiles_back": (None, [_at, _i64, _i64, _i64, _i64, _at, _at, _i32]),
    "hadamard_turn": (None, [*_narrow, *_turn, _at, _i32]),
    "hadamard_turn_back": (None, [_at, *_turn, _i32, _at, _i32]),
    "int8_pack": (None, [_at, _i64, _at, _i32]),
    "int8_unpack": (None, [_at, _i64, _at, _i32]),
    "scaled": (_i32, [*_narrow, _i64, _f32, _at, _i32]),
}


def declare(library: CDLL) -> None:
    """Tell ctypes the arguments and the result of each function of a build."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
