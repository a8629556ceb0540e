"""Contracting flows and their steady states: problems, flows, metrics, integrators and the one loop that solves."""

from contracting.errors import (
    ContractingError,
    InputError,
    MissingExtraError,
    PreconditionError,
    SolveError,
    Status,
)
from contracting.flows import FiringRate, ForwardBackwardFlow, Hopfield, PeacemanRachfordFlow
from contracting.linear import Dense, LinearMap
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.problem import EquilibriumProblem
from contracting.solve import Iteration, Method, Solution, Stop, Trace, solve

__all__ = [
    "ContractingError",
    "Dense",
    "EquilibriumProblem",
    "FiringRate",
    "ForwardBackwardFlow",
    "FullP",
    "Hopfield",
    "InputError",
    "Iteration",
    "LinearMap",
    "Method",
    "Metric",
    "MissingExtraError",
    "PeacemanRachfordFlow",
    "PreconditionError",
    "Solution",
    "SolveError",
    "Status",
    "Stop",
    "Trace",
    "WeightedL1",
    "WeightedL2",
    "WeightedLinf",
    "solve",
]
