"""Networks of ``transformers``, from small configurations."""

from __future__ import annotations

from benchmarks.symmetry.library import Factory
from benchmarks.symmetry.library.transformers.images import IMAGES
from benchmarks.symmetry.library.transformers.speech import SPEECH
from benchmarks.symmetry.library.transformers.text import DECODERS, SEQ2SEQ, TEXT

NETWORKS: dict[str, dict[str, Factory]] = {
    "transformers": {**TEXT, **DECODERS, **SEQ2SEQ, **SPEECH, **IMAGES}
}
