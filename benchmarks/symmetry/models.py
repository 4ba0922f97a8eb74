"""Networks of libraries: whether their symmetry is extracted, whether it holds, how much of them may move."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any

from benchmarks.harness.command import Part
from benchmarks.harness.store import Record, Store
from benchmarks.symmetry.library import LIBRARIES, factories

BENCHMARK = "symmetry_models"
_PACKAGES = {
    "open-clip": ("open_clip", "open_clip_torch"),
    "vit-pytorch": ("vit_pytorch", "vit-pytorch"),
    "segmentation-models-pytorch": ("segmentation_models_pytorch", "segmentation_models_pytorch"),
    "x-transformers": ("x_transformers", "x-transformers"),
    "torch-geometric": ("torch_geometric", "torch-geometric"),
    "written-out": ("torch", "torch"),
}
"""Library -> module and distribution, where these are not its name."""
_SERVER = get_context("forkserver")


def libraries(text: str) -> list[str]:
    """The libraries in a list with commas; "all" for all of them."""
    names = list(LIBRARIES) if text == "all" else text.split(",")
    if unknown := [name for name in names if name not in LIBRARIES]:
        raise ValueError(
            f"--models: got {', '.join(unknown)}, expected all or some of {', '.join(LIBRARIES)}"
        )
    for name in names:
        if find_spec(_PACKAGES.get(name, (name, name))[0]) is None:
            raise ValueError(f"--models: {name} is not installed; pip install -e '.[models]'")
    return names


def parts(options: Any, store: Store) -> list[Part]:
    """A part per network of the libraries that the options ask for.

    Those that ``store`` lacks are measured ``options.workers`` at a time, from when the first is asked for.
    """
    chosen = libraries(options.models)
    # Imported once, in the process that all others are copies of.
    modules = [_PACKAGES.get(name, (name, name))[0] for name in chosen if name != "torchaudio"]
    _SERVER.set_forkserver_preload(
        ["benchmarks.symmetry.models_measure", "benchmarks.symmetry.models_warm", *modules]
    )
    settings = {"elements": options.elements, "probes": min(options.probes, 8)}
    pool = ThreadPoolExecutor(options.workers)
    found: list[Part] = []
    for library in chosen:
        identity = {"version": _version(library)} | settings
        for name in factories(library):
            key = f"{library}_{name}"
            if options.only and key not in options.only:
                continue
            again = options.again or bool(options.only) or not store.has(key, identity)
            future = pool.submit(_measured, library, name, settings, options.limit) if again else None
            found.append(Part(key, identity, partial(_waited, future)))
    return found


def _waited(future: Future[Record] | None, advance: object = None) -> Record:
    assert future is not None, "what is stored is not measured"
    return future.result()


def _version(library: str) -> str:
    try:
        return version(_PACKAGES.get(library, (library, library))[1]).partition("+")[0]
    except PackageNotFoundError:
        return "not known"


def _measured(library: str, name: str, settings: Record, limit: float) -> Record:
    from benchmarks.symmetry.models_measure import main

    reader, writer = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=main, args=(library, name, settings, writer))
    process.start()
    writer.close()
    result: Record = {}
    until = time.perf_counter() + limit
    try:
        while reader.poll(max(until - time.perf_counter(), 0)):
            result |= reader.recv()
        result["error"] = f"not done after {limit:.0f} s"
        process.kill()
    except EOFError:  # it is done, or has ended
        process.join()
        if process.exitcode:
            result["error"] = f"ended with code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return result
