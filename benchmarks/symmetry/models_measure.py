"""What models.py measures of one network, in a separate process."""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.symmetry.coverage_measure import extracted, peak_bytes, proved
from benchmarks.symmetry.library import factories


def main(library: str, name: str, settings: dict[str, Any], out: Connection) -> None:
    """Send fields of the record, more with every stage; an error is one too.

    Args:
        library: A key of ``LIBRARIES``.
        name: A network of it.
        settings: ``elements`` and ``probes`` of the proof.
        out: Where the fields go.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    stage = "not built"
    # Libraries print what they think of an installation.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            net, inputs = factories(library)[name]()
            out.send({"parameters": sum(parameter.numel() for parameter in net.parameters())})
            stage = "not extracted"
            spec, fields = extracted(net, inputs)
            out.send(fields)
            stage = "no proof"
            started = time.perf_counter()
            out.send({"proof": proved(spec, net, inputs, **settings)})
            out.send({"proof_seconds": round(time.perf_counter() - started, 2), "peak_bytes": peak_bytes()})
        except Exception as error:
            text = " ".join(str(error).split())
            out.send({"error": f"{stage}: {type(error).__name__}: {text[:500]}"})
