"""Networks whose output is an equilibrium: parameterisations, layers, Lipschitz certificates, training, experiments."""

from contracting import (
    FISTA,
    RK4,
    Anderson,
    Automatic,
    BackwardEuler,
    BogackiShampine,
    Choice,
    DiagonalStep,
    DormandPrince,
    DouglasRachford,
    ExplicitEuler,
    ForwardBackward,
    Heun,
    Implicit,
    JacobianFree,
    NeumannSeries,
    NewtonKrylov,
    PeacemanRachford,
    PseudoTransient,
    RungeKuttaChebyshev,
    SemismoothNewton,
    Stop,
    TorchDiffEq,
    Tseng,
    Unrolled,
)
from contracting import __version__ as __version__
from equilibrium.checkpoints import load_reference, save_reference
from equilibrium.convert import from_residual, from_sequential, from_weights
from equilibrium.convolution import ContractiveConv2d, LBENConv2d, MultiScaleConv2d
from equilibrium.fixed import FixedIterations
from equilibrium.layers import LBEN, EquilibriumLayer, FailedRows
from equilibrium.lipschitz import (
    LipschitzCertificate,
    LipschitzReport,
    PairwiseLipschitz,
    attained_lipschitz,
    certified_lipschitz,
    check_lipschitz,
    lipschitz_report,
    pairwise_lipschitz,
)
from equilibrium.local import (
    ClassProof,
    LocalLipschitz,
    LocalSearch,
    certified_radius,
    certified_within,
    local_lipschitz,
)
from equilibrium.nemon import NEMON
from equilibrium.parameterizations import (
    BoundedParameterization,
    Contractive,
    DenseParameterization,
    MonDEQ,
    Monotone,
    Parameterization,
    Unconstrained,
)
from equilibrium.starts import AffineStart
from equilibrium.tracking import FixedTracking, TrackedFrame, Tracker, track_inputs
from equilibrium.training.certified import CertifiedMargin, IntervalMargin, LocalMargin
from equilibrium.training.data import Samples
from equilibrium.training.loop import train
from equilibrium.training.losses import CrossEntropy, Loss, SquaredError
from equilibrium.training.records import TrainingRecord, TrainingStep
from equilibrium.training.steep import SteepCrossEntropy
from equilibrium.weights import NetworkWeights, Weights, explicit_weights

__all__ = [
    "AffineStart", "Anderson", "Automatic", "BackwardEuler", "BogackiShampine", "BoundedParameterization",
    "CertifiedMargin", "Choice", "ClassProof", "Contractive", "ContractiveConv2d", "CrossEntropy",
    "DenseParameterization",
    "DiagonalStep", "DormandPrince", "DouglasRachford", "EquilibriumLayer", "ExplicitEuler", "FISTA",
    "FailedRows", "FixedIterations", "FixedTracking", "ForwardBackward", "Heun", "Implicit", "IntervalMargin",
    "JacobianFree", "LBEN", "LBENConv2d", "LipschitzCertificate", "LipschitzReport", "LocalLipschitz",
    "LocalMargin", "LocalSearch", "Loss", "MonDEQ", "Monotone", "MultiScaleConv2d", "NEMON", "NetworkWeights",
    "NeumannSeries", "NewtonKrylov", "PairwiseLipschitz", "Parameterization", "PeacemanRachford",
    "PseudoTransient", "RK4", "RungeKuttaChebyshev", "Samples", "SemismoothNewton", "SquaredError", "SteepCrossEntropy",
    "Stop", "TorchDiffEq", "TrackedFrame", "Tracker", "TrainingRecord", "TrainingStep", "Tseng", "Unconstrained",
    "Unrolled", "Weights", "attained_lipschitz", "certified_lipschitz", "certified_radius", "certified_within",
    "check_lipschitz", "explicit_weights", "from_residual", "from_sequential", "from_weights",
    "lipschitz_report", "load_reference", "local_lipschitz", "pairwise_lipschitz", "save_reference",
    "track_inputs", "train",
]  # fmt: skip
