"""What the fork server loads once, so that no test rank has to: transformers takes seconds."""

import gc

import transformers.models.gpt2.modeling_gpt2  # noqa: F401

import thinwire.bench.ours
import thinwire.bench.worker
import thinwire.train.job
import thinwire.train.rank  # noqa: F401

# Some 400,000 objects that live on: no collection of a fork walks (and so copies) them again.
gc.collect()
gc.freeze()
