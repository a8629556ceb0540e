"""Networks whose output is an equilibrium: parameterisations, layers, splittings and their gradients."""

from equilibrium.checkpoints import load_reference, save_reference
from equilibrium.fixed import FixedIterations
from equilibrium.implicit import Implicit, Unrolled
from equilibrium.layers import LBEN, EquilibriumLayer
from equilibrium.newton import SemismoothNewton
from equilibrium.parameterizations import MonDEQ, Monotone, Parameterization, Unconstrained
from equilibrium.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from equilibrium.weights import Weights, explicit_weights

__all__ = [
    "LBEN",
    "DouglasRachford",
    "EquilibriumLayer",
    "FixedIterations",
    "ForwardBackward",
    "Implicit",
    "MonDEQ",
    "Monotone",
    "Parameterization",
    "PeacemanRachford",
    "SemismoothNewton",
    "Unconstrained",
    "Unrolled",
    "Weights",
    "explicit_weights",
    "load_reference",
    "save_reference",
]
