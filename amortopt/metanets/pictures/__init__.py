"""Image networks, read and edited by way of the pictures that they show."""

from __future__ import annotations

from amortopt.metanets.pictures.editor import PictureEditor as PictureEditor
from amortopt.metanets.pictures.functional import PictureFunctional as PictureFunctional

__all__ = ["PictureEditor", "PictureFunctional"]
