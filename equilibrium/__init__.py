"""Networks whose output is an equilibrium: parameterisations, layers, splittings and their gradients."""

from equilibrium.anderson import Anderson
from equilibrium.automatic import Automatic, Choice
from equilibrium.checkpoints import load_reference, save_reference
from equilibrium.convolution import LBENConv2d
from equilibrium.diagonal_step import DiagonalStep
from equilibrium.fista import FISTA
from equilibrium.fixed import FixedIterations
from equilibrium.implicit import Implicit, Unrolled
from equilibrium.krylov import NewtonKrylov
from equilibrium.layers import LBEN, EquilibriumLayer
from equilibrium.newton import SemismoothNewton
from equilibrium.parameterizations import MonDEQ, Monotone, Parameterization, Unconstrained
from equilibrium.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from equilibrium.tseng import Tseng
from equilibrium.weights import Weights, explicit_weights

__all__ = [
    "FISTA",
    "LBEN",
    "LBENConv2d",
    "Anderson",
    "Automatic",
    "Choice",
    "DiagonalStep",
    "DouglasRachford",
    "EquilibriumLayer",
    "FixedIterations",
    "ForwardBackward",
    "Implicit",
    "MonDEQ",
    "Monotone",
    "NewtonKrylov",
    "Parameterization",
    "PeacemanRachford",
    "SemismoothNewton",
    "Tseng",
    "Unconstrained",
    "Unrolled",
    "Weights",
    "explicit_weights",
    "load_reference",
    "save_reference",
]
