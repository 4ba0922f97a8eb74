"""Families of problems: what a metanet that reads its problem is meta-trained on, and judged by."""

from __future__ import annotations

from amortopt.tasks.problem_families.arrays import Arrays as Arrays
from amortopt.tasks.problem_families.base import GeneratedFamily as GeneratedFamily
from amortopt.tasks.problem_families.base import ProblemFamily as ProblemFamily
from amortopt.tasks.problem_families.base import make_problem_family as make_problem_family
from amortopt.tasks.problem_families.base import make_problem_or_family as make_problem_or_family
from amortopt.tasks.problem_families.base import problem_family_names as problem_family_names
from amortopt.tasks.problem_families.base import register_problem_family as register_problem_family
from amortopt.tasks.problem_families.curves import Curves as Curves
from amortopt.tasks.problem_families.finite import FiniteFamily as FiniteFamily
from amortopt.tasks.problem_families.folder import Folder as Folder
from amortopt.tasks.problem_families.glyphs import Glyphs as Glyphs
from amortopt.tasks.problem_families.images import Images as Images

__all__ = [
    "Arrays",
    "Curves",
    "FiniteFamily",
    "Folder",
    "GeneratedFamily",
    "Glyphs",
    "Images",
    "ProblemFamily",
    "make_problem_family",
    "make_problem_or_family",
    "problem_family_names",
    "register_problem_family",
]
