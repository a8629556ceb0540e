"""Contracting flows and their steady states: problems, flows, solvers, gradients, certificates and simulations."""

from contracting.activations.base import Activation, Curved, PiecewiseLinear
from contracting.activations.blockwise import Blockwise
from contracting.activations.catalogue import (
    ADMISSIBLE,
    ELU,
    Arctan,
    HardSigmoid,
    HardTanh,
    Identity,
    LeakyReLU,
    ReLU,
    ReLU6,
    Sigmoid,
    Slope,
    Softplus,
    Softshrink,
    Softsign,
    Tanh,
)
from contracting.activations.clamped import Clamped
from contracting.activations.mirrored import Mirrored
from contracting.activations.names import activation_named, as_activation, register_activation
from contracting.activations.sheared import Sheared
from contracting.certificates import (
    Candidate,
    Certificate,
    CertificateError,
    CircleCriterion,
    Convergence,
    GainCertificate,
    LiftedForm,
    LiftedInequality,
    PassivityCertificate,
    RateFinder,
    Report,
    UpperBound,
    Wellposedness,
    certify,
    certify_gain,
    certify_passivity,
    check,
    find_metric,
    fixed_input_convergence,
    register_finder,
    report,
)
from contracting.errors import ContractingError, InputError, MissingExtraError, PreconditionError, Status
from contracting.flows.base import BoundFlow, Flow
from contracting.flows.driven import DrivenFlow
from contracting.flows.fields import InputFlow, LinearFlow, NeuralFlow, VectorField
from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.speed import DouglasRachfordFlow, TimeScaledForwardBackward
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.flows.steady import FieldProblem
from contracting.gradients.implicit import Implicit, Unrolled, WarmAdjoint
from contracting.gradients.torchdiffeq_adjoint import TorchDiffEqAdjoint
from contracting.gradients.truncated import JacobianFree, NeumannSeries
from contracting.integrators import (
    RK4,
    BackwardEuler,
    BogackiShampine,
    DormandPrince,
    ExplicitEuler,
    Heun,
    PseudoTransient,
    RungeKuttaChebyshev,
    TorchDiffEq,
)
from contracting.loop.method import Family, Iteration, Method, State
from contracting.loop.records import Solution, SolveError, Stop, Trace
from contracting.loop.run import solve
from contracting.lure.flow import LureFlow
from contracting.lure.operations import register_reader
from contracting.lure.reading import lure_of
from contracting.lure.system import LureSystem
from contracting.maps.base import LinearMap
from contracting.maps.convolution import CircularConvolution
from contracting.maps.dense import Dense
from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf
from contracting.modules.contracting_ode import ContractingODE
from contracting.modules.inputs import LinearInterpolation, ZeroOrderHold
from contracting.modules.lure_ode import LureODE, Response
from contracting.modules.parameterization import Contracting, WellPosed
from contracting.modules.supply import Passive
from contracting.problem import EquilibriumProblem
from contracting.regions import (
    Ball,
    Box,
    LargestBall,
    PathCertificate,
    RateProfile,
    RegionCertificate,
    StateMetric,
    certify_paths,
    certify_region,
    largest_contracting_ball,
    rate_against_radius,
)
from contracting.simulation.balls import CarriedBall, carry_ball
from contracting.simulation.decay import DecayFit, decay_rate
from contracting.simulation.energy import Energy
from contracting.simulation.evidence import Claim
from contracting.simulation.sampled import (
    SampledRate,
    fit_metric,
    fit_metric_by_inequalities,
    sampled_rate,
    sampled_rate_along,
    worst_point,
)
from contracting.simulation.time_steps import AdaptiveStep, FixedStep
from contracting.simulation.torchdiffeq_adapter import TorchDiffEqStep
from contracting.simulation.tracking import Tracking, track, tracking_bound
from contracting.simulation.trajectories import Trajectory, TrajectoryPair, distance, simulate, simulate_pairs
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic, Choice
from contracting.solvers.catalogue import default_solvers, register_solver
from contracting.solvers.diagonal_step import DiagonalStep
from contracting.solvers.fista import FISTA
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from contracting.solvers.tseng import Tseng
from contracting.steady_states.solving import SteadyState, steady_state
from contracting.types import Slopes

__version__ = "0.1.0"

__all__ = [
    "ADMISSIBLE", "Activation", "AdaptiveStep", "Anderson", "Arctan", "Automatic", "BackwardEuler", "Ball",
    "Blockwise", "BogackiShampine", "BoundFlow", "Box", "Candidate", "CarriedBall", "Certificate",
    "CertificateError", "Choice", "CircleCriterion", "CircularConvolution", "Claim", "Clamped", "Contracting",
    "ContractingError", "ContractingODE", "Convergence", "Curved", "DecayFit", "Dense", "DiagonalStep",
    "DormandPrince", "DouglasRachford", "DouglasRachfordFlow", "DrivenFlow", "ELU", "Energy",
    "EquilibriumProblem", "ExplicitEuler", "FISTA", "Family", "FieldProblem", "FiringRate", "FixedStep", "Flow",
    "ForwardBackward", "ForwardBackwardFlow", "FullP", "GainCertificate", "HardSigmoid", "HardTanh", "Heun",
    "Hopfield", "Identity", "Implicit", "InputError", "InputFlow", "Iteration", "JacobianFree",
    "LargestBall", "LeakyReLU",
    "LiftedForm", "LiftedInequality", "LinearFlow", "LinearInterpolation", "LinearMap", "LureFlow", "LureODE",
    "LureSystem", "Method", "Metric", "Mirrored", "MissingExtraError", "NeumannSeries", "NeuralFlow",
    "NewtonKrylov", "Passive",
    "PassivityCertificate", "PathCertificate", "PeacemanRachford", "PeacemanRachfordFlow", "PiecewiseLinear",
    "PreconditionError", "PseudoTransient", "RK4", "RateFinder", "RateProfile", "ReLU", "ReLU6",
    "RegionCertificate", "Report", "Response", "RungeKuttaChebyshev", "SampledRate", "SemismoothNewton",
    "Sheared", "Sigmoid", "Slope", "Slopes", "Softplus", "Softshrink", "Softsign", "Solution", "SolveError",
    "State", "StateMetric", "Status", "SteadyState", "Stop", "Tanh", "TimeScaledForwardBackward", "TorchDiffEq",
    "TorchDiffEqAdjoint", "TorchDiffEqStep", "Trace", "Tracking", "Trajectory", "TrajectoryPair", "Tseng",
    "Unrolled", "UpperBound", "VectorField", "WarmAdjoint", "WeightedL1", "WeightedL2", "WeightedLinf",
    "WellPosed", "Wellposedness", "ZeroOrderHold", "activation_named", "as_activation", "carry_ball", "certify",
    "certify_gain", "certify_passivity", "certify_paths", "certify_region", "check", "decay_rate",
    "default_solvers", "distance", "find_metric", "fit_metric", "fit_metric_by_inequalities",
    "fixed_input_convergence", "largest_contracting_ball", "lure_of", "rate_against_radius",
    "register_activation", "register_finder", "register_reader", "register_solver", "report", "sampled_rate",
    "sampled_rate_along", "simulate", "simulate_pairs", "solve", "steady_state", "track", "tracking_bound",
    "worst_point",
]  # fmt: skip
