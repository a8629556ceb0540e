"""Contracting flows and their steady states: problems, flows, metrics, integrators and the one loop that solves."""

from contracting.balls import CarriedBall, carry_ball
from contracting.convolution import CircularConvolution
from contracting.decay import DecayFit, decay_rate
from contracting.energy import Energy
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
from contracting.sampled import (
    SampledRate,
    fit_metric,
    fit_metric_by_inequalities,
    sampled_rate,
    sampled_rate_along,
    worst_point,
)
from contracting.scaled_flows import DouglasRachfordFlow, TimeScaledForwardBackward
from contracting.solve import Iteration, Method, Solution, Stop, Trace, solve
from contracting.tracking import Tracking, track, tracking_bound
from contracting.trajectories import (
    AdaptiveStep,
    DrivenFlow,
    FixedStep,
    Trajectory,
    TrajectoryPair,
    distance,
    simulate,
    simulate_pairs,
)
from contracting.vector_fields import LinearFlow, NeuralFlow, VectorField

__all__ = [
    "AdaptiveStep",
    "CircularConvolution",
    "CarriedBall",
    "ContractingError",
    "DecayFit",
    "Dense",
    "DouglasRachfordFlow",
    "DrivenFlow",
    "Energy",
    "EquilibriumProblem",
    "FiringRate",
    "FixedStep",
    "ForwardBackwardFlow",
    "FullP",
    "Hopfield",
    "InputError",
    "Iteration",
    "LinearFlow",
    "LinearMap",
    "Method",
    "Metric",
    "MissingExtraError",
    "NeuralFlow",
    "PeacemanRachfordFlow",
    "PreconditionError",
    "SampledRate",
    "Solution",
    "SolveError",
    "Status",
    "Stop",
    "TimeScaledForwardBackward",
    "Trace",
    "Tracking",
    "Trajectory",
    "TrajectoryPair",
    "VectorField",
    "WeightedL1",
    "WeightedL2",
    "WeightedLinf",
    "carry_ball",
    "decay_rate",
    "distance",
    "fit_metric",
    "fit_metric_by_inequalities",
    "sampled_rate",
    "sampled_rate_along",
    "simulate",
    "simulate_pairs",
    "solve",
    "track",
    "tracking_bound",
    "worst_point",
]
