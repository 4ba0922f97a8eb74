"""Problems (data and an objective), and families of base networks that learn them."""

from amortopt.tasks.arithmetic import Arithmetic as Arithmetic
from amortopt.tasks.arithmetic import ArithmeticRnn as ArithmeticRnn
from amortopt.tasks.arrays import ArrayProblem as ArrayProblem
from amortopt.tasks.corpora import Lm1b as Lm1b
from amortopt.tasks.corpora import TextFile as TextFile
from amortopt.tasks.digits import Digits as Digits
from amortopt.tasks.examples import Examples as Examples
from amortopt.tasks.families import Cnn as Cnn
from amortopt.tasks.families import Family as Family
from amortopt.tasks.families import Mlp as Mlp
from amortopt.tasks.families import family_names as family_names
from amortopt.tasks.families import init_many as init_many
from amortopt.tasks.families import make_family as make_family
from amortopt.tasks.families import register_family as register_family
from amortopt.tasks.measure import evaluate_many as evaluate_many
from amortopt.tasks.measure import loss_and_grad_many as loss_and_grad_many
from amortopt.tasks.measure import loss_many as loss_many
from amortopt.tasks.mnist1d import Mnist1d as Mnist1d
from amortopt.tasks.objective import CrossEntropy as CrossEntropy
from amortopt.tasks.objective import Mean as Mean
from amortopt.tasks.objective import Objective as Objective
from amortopt.tasks.objective import SquaredError as SquaredError
from amortopt.tasks.objective import make_objective as make_objective
from amortopt.tasks.problem import Problem as Problem
from amortopt.tasks.problem import make_problem as make_problem
from amortopt.tasks.problem import problem_names as problem_names
from amortopt.tasks.problem import register_problem as register_problem
from amortopt.tasks.problem_families import ProblemFamily as ProblemFamily
from amortopt.tasks.problem_families import make_problem_family as make_problem_family
from amortopt.tasks.problem_families import register_problem_family as register_problem_family
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
    "Arithmetic",
    "ArithmeticRnn",
    "ArrayProblem",
    "CharRnn",
    "Cifar10",
    "Cifar10Gray",
    "Cnn",
    "CrossEntropy",
    "Digits",
    "Examples",
    "Family",
    "FashionMnist",
    "Lm1b",
    "Mean",
    "Mlp",
    "Mnist",
    "Mnist1d",
    "Objective",
    "Problem",
    "ProblemFamily",
    "PydocText",
    "SquaredError",
    "SvhnGray",
    "TextFile",
    "TextProblem",
    "Transformer",
    "VisionProblem",
    "evaluate_many",
    "family_names",
    "init_many",
    "loss_and_grad_many",
    "loss_many",
    "make_family",
    "make_objective",
    "make_problem",
    "make_problem_family",
    "problem_names",
    "register_family",
    "register_problem",
    "register_problem_family",
]
