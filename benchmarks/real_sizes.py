"""Real sizes: many small tensors, memory by strategy, attach of large models, and the trainer.

    python -m benchmarks.real_sizes many --json benchmarks/results/real_sizes_many.json

many      a step and attach of 5,000 small tensors, beside DDP (sizes_many.py)
memory    bytes a parameter by strategy, measured beside a formula (sizes_memory.py)
attach    seconds, peak and `check()` of 300 M and 1 B parameters (sizes_memory.py)
trainer   `thinwire train` beside a bare loop and Hugging Face's Trainer (sizes_trainer.py)
"""

from __future__ import annotations

from benchmarks import sizes_many, sizes_memory, sizes_trainer
from benchmarks.common import emit, parser, table

HEADS = {
    "many": ("", "step s", "over DDP", "25 %", "75 %", "processor", "25 %", "75 %", "attach s"),
    "memory": ("bytes a parameter", "measured", "formula", "of"),
    "attach": ("", "parameters", "attach s", "bytes a parameter", "check s"),
    "trainer": ("", "step s", "over bare", "over HF", "processor: over bare", "over HF"),
}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("part", choices=HEADS)
    arguments.add_argument("--rounds", type=int, default=12, help="of many (default 12)")
    arguments.add_argument("--launches", type=int, default=3, help="of trainer (default 3)")
    arguments.add_argument("--steps", type=int, default=100, help="of trainer (default 100)")
    args = arguments.parse_args()
    if args.part == "many":
        rows, results = sizes_many.measure(args.rounds)
    elif args.part == "memory":
        rows, results = sizes_memory.table_of_memory()
    elif args.part == "attach":
        rows, results = sizes_memory.attach_of_large()
    else:
        rows, results = sizes_trainer.measure(args.launches, args.steps)
    table(HEADS[args.part], rows)
    emit(args.json, {"part": args.part, "results": results})


if __name__ == "__main__":
    main()
