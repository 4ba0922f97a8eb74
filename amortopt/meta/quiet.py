"""Lightning without its advice and greetings."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_IRRELEVANT_WARNINGS = (
    r"\s*``instantiate_classes`` was deprecated",  # jsonargparse, called by Lightning
    r"\s*By default only one JsonargparseDeprecationWarning",
    r".*does not have many workers.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*ModelCheckpoint.*",
    r".*GPU available but not used.*",
    r"Grad strides do not match bucket view strides",  # of axes of size 1, under DDP
)
_IRRELEVANT_LOGS = re.compile(  # of Lightning's Trainer, on every start and end
    r"💡 Tip: |[GTH]PU available: |`Trainer\((limit_val_batches|val_check_interval)|`Trainer\.fit` stopped: "
)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's advice about other ways to train, and without its greetings."""

    def is_relevant(record: logging.LogRecord) -> bool:
        return not _IRRELEVANT_LOGS.match(record.getMessage())

    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(is_relevant)
    try:
        with warnings.catch_warnings():
            for message in _IRRELEVANT_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        logger.removeFilter(is_relevant)
