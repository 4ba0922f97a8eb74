"""Problems (data and an objective), and families of base networks that learn them."""

from amortopt.tasks.arithmetic import Arithmetic, ArithmeticRnn
from amortopt.tasks.digits import Digits
from amortopt.tasks.examples import Examples
from amortopt.tasks.families import (
    Cnn,
    Family,
    Mlp,
    Siren,
    family_names,
    init_many,
    make_family,
    register_family,
)
from amortopt.tasks.measure import answers_many, evaluate_many, loss_and_grad_many, loss_many
from amortopt.tasks.mnist1d import Mnist1d
from amortopt.tasks.mnist5k import MNIST5k
from amortopt.tasks.objective import (
    CrossEntropy,
    Mean,
    Objective,
    SoftCrossEntropy,
    SquaredError,
    make_objective,
)
from amortopt.tasks.own_networks import ModuleFamily, register_network
from amortopt.tasks.problem import ArrayProblem, Problem, make_problem, problem_names, register_problem
from amortopt.tasks.problem_families import (
    ProblemFamily,
    make_problem_family,
    make_problem_or_family,
    problem_family_names,
    register_problem_family,
)
from amortopt.tasks.sequences import CharRnn, Transformer
from amortopt.tasks.text import Lm1b, PydocText, TextFile, TextProblem
from amortopt.tasks.vision import Cifar10, Cifar10Gray, FashionMnist, Mnist, SvhnGray, VisionProblem

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
    "MNIST5k",
    "Mean",
    "Mlp",
    "Mnist",
    "Mnist1d",
    "ModuleFamily",
    "Objective",
    "Problem",
    "ProblemFamily",
    "PydocText",
    "Siren",
    "SoftCrossEntropy",
    "SquaredError",
    "SvhnGray",
    "TextFile",
    "TextProblem",
    "Transformer",
    "VisionProblem",
    "answers_many",
    "evaluate_many",
    "family_names",
    "init_many",
    "loss_and_grad_many",
    "loss_many",
    "make_family",
    "make_objective",
    "make_problem",
    "make_problem_family",
    "make_problem_or_family",
    "problem_family_names",
    "problem_names",
    "register_family",
    "register_network",
    "register_problem",
    "register_problem_family",
]
