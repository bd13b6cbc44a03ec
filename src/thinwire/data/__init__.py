"""What a model learns from: texts, tokenizers, tokens on disk, packed sets, records, batches; and 6
MB of English without a download."""

from thinwire.data.batches import Batches, validation_windows
from thinwire.data.collate import encoder_batch, masked_batch, span_batch
from thinwire.data.english import english
from thinwire.data.order import Order, Reader, scattered, striped
from thinwire.data.packaged import packaged
from thinwire.data.pipeline import Pipeline, Place, furthest, lanes_of
from thinwire.data.prefetch import Prefetch
from thinwire.data.records import Records, in_memory
from thinwire.data.sets import SetReader, TokenSet, write_set
from thinwire.data.streamed import Streamed
from thinwire.data.text import Text, read_text
from thinwire.data.tokenizer import encode, tokenizer_digest, tokenizer_from
from thinwire.data.tokens import Tokens, prepare

__all__ = [
    "Batches",
    "Order",
    "Pipeline",
    "Place",
    "Prefetch",
    "Reader",
    "Records",
    "SetReader",
    "Streamed",
    "Text",
    "TokenSet",
    "Tokens",
    "encode",
    "encoder_batch",
    "english",
    "furthest",
    "in_memory",
    "lanes_of",
    "masked_batch",
    "packaged",
    "prepare",
    "read_text",
    "scattered",
    "span_batch",
    "striped",
    "tokenizer_digest",
    "tokenizer_from",
    "validation_windows",
    "write_set",
]
