"""Train a model with torchtitan, and let a strategy join its replicas.

    torchrun --nproc-per-node=4 examples/torchtitan_hsdp.py \\
        --module llama3 --config llama3_debugmodel \\
        --parallelism.data_parallel_replicate_degree 2 --parallelism.data_parallel_shard_degree 2 \\
        --parallelism.spmd_backend partial_dtensor --training.disable_cuda_graphs

It takes all of torchtitan's options, and wants accelerators, as torchtitan does. FSDP2 shards the
model within a replica. Every 4 steps each rank sends the change of its own shards to the rank of
the other replica that holds the same shards (DiLoCo).
"""

import torch.distributed as dist
from torchtitan.config import ConfigManager

from thinwire import recipes
from thinwire.adapters.torchtitan import Thinwire


def main() -> None:
    joined = Thinwire(recipes.diloco(period=4))  # new
    trainer = joined.build(ConfigManager().parse_args())  # in place of config.build()
    try:
        trainer.train()
        report = joined.sync.report()
        if dist.get_rank() == 0:
            print(
                f"sent {report.sent_bytes:,.0f} bytes from each rank, {report.ratio:.1f}x fewer "
                "than dense fp32"
            )
    finally:
        trainer.close()


if __name__ == "__main__":
    main()
