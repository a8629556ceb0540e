"""Free parameters → explicit weights, with the certificates that hold for every value of the parameters."""

from equilibrium.parameterizations.base import DenseOptions, DenseParameterization, Parameterization, Unconstrained
from equilibrium.parameterizations.bounded import BoundedOptions, BoundedParameterization, checked_lipschitz, metric_of
from equilibrium.parameterizations.contractive import Contractive
from equilibrium.parameterizations.monotone import MonDEQ, Monotone, MonotoneOptions, gram

__all__ = [
    "BoundedOptions", "BoundedParameterization", "Contractive", "DenseOptions", "DenseParameterization", "MonDEQ",
    "Monotone", "MonotoneOptions", "Parameterization", "Unconstrained", "checked_lipschitz", "gram", "metric_of",
]  # fmt: skip
