"""Models of transformers."""

from __future__ import annotations

import logging

from thinwire.models.hugging_face import quiet


def test_quiet_is_quiet_only_inside() -> None:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    with quiet():
        assert transformers_logging.get_verbosity() == logging.ERROR
        assert not transformers_logging.is_progress_bar_enabled()
    assert transformers_logging.get_verbosity() == before
    assert transformers_logging.is_progress_bar_enabled()
