"""What Triton's compilers make of each program of `kernels/_programs.py`: {program: what is wrong},
as JSON. No GPU is needed.

python -m tests.kernels.compiled cuda|hip
"""

import json
import re
import sys
from importlib import import_module
from typing import Any

TARGETS: dict[str, tuple[str, str | int, int]] = {
    "cuda": ("cuda", 90, 32),
    "hip": ("hip", "gfx942", 64),
}  # backend, architecture, threads of a warp
FLAGS = (
    "contract",
    "fast",
    "reassoc",
    "arcp",
    "afn",
)  # of LLVM's arithmetic: leave to round otherwise than was written
POINTERS = {
    **dict.fromkeys(("x", "given", "steps", "out", "means", "values"), "*fp32"),
    **dict.fromkeys(("codes", "signs"), "*u8"),
    **dict.fromkeys(("table", "indices"), "*i64"),
}
GRIDS: dict[str, dict[str, Any]] = {
    "nearest": {
        "BITS": 4,
        "TOP": 7.0,
        "ZERO": 7,
        "STOCHASTIC": False,
        "GIVEN": False,
        "FEEDBACK": False,
    },
    "stochastic": {
        "BITS": 8,
        "TOP": 127.0,
        "ZERO": 127,
        "STOCHASTIC": True,
        "GIVEN": True,
        "FEEDBACK": False,
    },
    "feedback": {
        "BITS": 3,
        "TOP": 3.5,
        "ZERO": 4,
        "STOCHASTIC": True,
        "GIVEN": False,
        "FEEDBACK": True,
    },
}
TILE = {"ROWS": 4, "BLOCK": 256}
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"grid_encode {name}": ("grid_encode", {**TILE, **given}) for name, given in GRIDS.items()},
    "grid_encode, large blocks": ("grid_encode", {"ROWS": 1, "BLOCK": 4096, **GRIDS["feedback"]}),
    "grid_encode, rest in bf16": ("grid_encode", {**TILE, **GRIDS["feedback"], "KEPT": "*i16"}),
    "grid_decode": ("grid_decode", {**TILE, "BITS": 5, "TOP": 15.0, "ADD": True}),
    "grid_sum_encode": (
        "grid_sum_encode",
        {**TILE, "BITS": 6, "TOP": 31.0, "ZERO": 31, "STOCHASTIC": True},
    ),
    "sign_encode": ("sign_encode", {**TILE, "HALVINGS": 8, "FEEDBACK": True}),
    "sign_encode, rest in bf16": (
        "sign_encode",
        {**TILE, "HALVINGS": 8, "FEEDBACK": True, "KEPT": "*i16"},
    ),
    "sign_decode": ("sign_decode", {**TILE, "ADD": True}),
    "sign_sum_encode": ("sign_sum_encode", {"ROWS": 128, "BLOCK": 8, "HALVINGS": 3}),
    "largest": ("largest", {"ROWS": 1, "WIDTH": 4096}),
}


def built(
    name: str, constants: dict[str, Any], target: tuple[str, str | int, int]
) -> dict[str, str]:
    """Each stage of a program's compilation, as text."""
    compiler = import_module(
        "triton.compiler"
    )  # here: pytest imports this file to look for examples in it
    program = getattr(import_module("thinwire.kernels._programs"), name)
    unused = {"GIVEN": ("given",), "FEEDBACK": ("residual", "new_residual")}
    absent = {
        name
        for flag, names in unused.items()
        if not constants.get(flag)
        for name in names
        if name in program.arg_names
    }
    constants = {**constants, **dict.fromkeys(absent)}
    pointers = POINTERS | dict.fromkeys(
        ("residual", "new_residual"), constants.pop("KEPT", "*fp32")
    )
    types = {
        name: "constexpr"
        if name in constants
        else "fp32"
        if name == "decay"
        else pointers.get(name, "i32")
        for name in program.arg_names
    }
    positions = {name: (program.arg_names.index(name),) for name in types}
    whole = [
        name for name in types if name in ("n", "per", "head") or types[name].startswith("*")
    ]  # multiples of 16, as most are
    source = compiler.ASTSource(
        program,
        types,
        {positions[name]: value for name, value in constants.items()},
        {positions[name]: [["tt.divisibility", 16]] for name in whole},
    )
    size = constants["ROWS"] * constants.get("BLOCK", constants.get("WIDTH"))
    options = {"num_warps": max(4, size // 512), "enable_fp_fusion": False}
    return dict(
        compiler.compile(
            source,
            target=import_module("triton.backends.compiler").GPUTarget(*target),
            options=options,
        ).asm
    )


def wrong(stages: dict[str, str]) -> list[str]:
    """What rounds otherwise than was written."""
    found = [
        line.strip()
        for line in stages["llir"].splitlines()
        if re.search(rf"= f(add|sub|mul|div)\b.*\b({'|'.join(FLAGS)})\b", line)
    ]
    if "ptx" in stages:
        return found + re.findall(
            r"^\s+(?:fma|\S+\.ftz|\S+\.approx|div\.full)\S*", stages["ptx"], re.MULTILINE
        )
    text = stages["amdgcn"]
    divisions, fused = (
        text.count("v_div_fixup_f32"),
        len(re.findall(r"^\s+v_(?:pk_)?(?:fma|mac|fmac|mad)_f32", text, re.MULTILINE)),
    )
    if fused != 5 * divisions:  # a correctly rounded division is five of them and no other
        found.append(f"{fused} fused products and sums for {divisions} divisions")
    if ".amdhsa_float_denorm_mode_32 3" not in text:
        found.append("subnormal numbers are flushed")
    return found


if __name__ == "__main__":
    print(
        json.dumps({name: wrong(built(*job, TARGETS[sys.argv[1]])) for name, job in JOBS.items()})
    )
