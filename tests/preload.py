"""What the fork server loads once, so that no test rank has to: transformers takes seconds."""

import atexit
import gc

import transformers.models.auto.tokenization_auto
import transformers.models.gpt2.modeling_gpt2
import transformers.tokenization_utils_tokenizers  # noqa: F401

import thinwire.bench.ours
import thinwire.bench.worker
import thinwire.train.job
import thinwire.train.rank  # noqa: F401

# Some 400,000 objects that live on: no collection of a fork walks (and so copies) them again.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # else extension modules report leaks where the server ends
