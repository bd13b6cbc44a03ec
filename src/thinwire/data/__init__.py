"""What a model learns from: texts, tokenizers, tokens on disk and batches; and 6 MB of English that need no download."""

from thinwire.data.batches import Batches, validation_windows
from thinwire.data.english import english
from thinwire.data.text import Text, read_text
from thinwire.data.tokenizer import encode, tokenizer_digest, tokenizer_from
from thinwire.data.tokens import Tokens, prepare

__all__ = [
    "Batches",
    "Text",
    "Tokens",
    "encode",
    "english",
    "prepare",
    "read_text",
    "tokenizer_digest",
    "tokenizer_from",
    "validation_windows",
]
