"""Training data: texts, tokenizers, tokens on disk, packed sets, records and batches; 6 MB of
English are bundled."""

from thinwire.data.corpus.english import english
from thinwire.data.corpus.text import Text, read_text
from thinwire.data.corpus.tokenizer import encode, tokenizer_digest, tokenizer_from
from thinwire.data.loaders.batches import Batches, validation_windows
from thinwire.data.loaders.collate import encoder_batch, masked_batch, span_batch
from thinwire.data.loaders.order import Order, Reader, scattered, striped
from thinwire.data.loaders.packaged import packaged
from thinwire.data.loaders.pipeline import Pipeline, Place, furthest, lanes_of
from thinwire.data.loaders.prefetch import Prefetch
from thinwire.data.loaders.records import Records, in_memory
from thinwire.data.loaders.sets import SetReader, TokenSet, write_set
from thinwire.data.loaders.streamed import Streamed
from thinwire.data.loaders.tokens import Tokens, prepare

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
