"""Data, loss and the base networks of a family."""

from amortopt.tasks.base import Problem as Problem
from amortopt.tasks.base import Split as Split
from amortopt.tasks.base import make_problem as make_problem
from amortopt.tasks.base import problem_names as problem_names
from amortopt.tasks.base import register_problem as register_problem
from amortopt.tasks.corpora import Lm1b as Lm1b
from amortopt.tasks.corpora import TextFile as TextFile
from amortopt.tasks.digits import Digits as Digits
from amortopt.tasks.families import Cnn as Cnn
from amortopt.tasks.families import Family as Family
from amortopt.tasks.families import Mlp as Mlp
from amortopt.tasks.families import family_names as family_names
from amortopt.tasks.families import init_many as init_many
from amortopt.tasks.families import make_family as make_family
from amortopt.tasks.families import register_family as register_family
from amortopt.tasks.mnist1d import Mnist1d as Mnist1d
from amortopt.tasks.sequences import CharRnn as CharRnn
from amortopt.tasks.sequences import Transformer as Transformer
from amortopt.tasks.text import PydocText as PydocText
from amortopt.tasks.text import TextProblem as TextProblem
from amortopt.tasks.vision import Cifar10 as Cifar10
from amortopt.tasks.vision import Cifar10Gray as Cifar10Gray
from amortopt.tasks.vision import FashionMnist as FashionMnist
from amortopt.tasks.vision import Mnist as Mnist
from amortopt.tasks.vision import SvhnGray as SvhnGray
from amortopt.tasks.vision import VisionProblem as VisionProblem

__all__ = [
    "CharRnn",
    "Cifar10",
    "Cifar10Gray",
    "Cnn",
    "Digits",
    "Family",
    "FashionMnist",
    "Lm1b",
    "Mlp",
    "Mnist",
    "Mnist1d",
    "Problem",
    "PydocText",
    "Split",
    "SvhnGray",
    "TextFile",
    "TextProblem",
    "Transformer",
    "VisionProblem",
    "family_names",
    "init_many",
    "make_family",
    "make_problem",
    "problem_names",
    "register_family",
    "register_problem",
]
