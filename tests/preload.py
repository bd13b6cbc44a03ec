"""What the fork server loads once, so that no test rank has to: transformers takes seconds."""

import transformers.models.gpt2.modeling_gpt2  # noqa: F401

import thinwire.bench.ours
import thinwire.bench.worker
import thinwire.train.job
import thinwire.train.rank  # noqa: F401
