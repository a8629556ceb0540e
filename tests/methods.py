"""Every solver of the library, for the contract suite."""

from __future__ import annotations

from contracting.flows.network import FiringRate, Hopfield
from contracting.flows.splitting import ForwardBackwardFlow, PeacemanRachfordFlow
from contracting.integrators import (
    RK4,
    BackwardEuler,
    BogackiShampine,
    DormandPrince,
    ExplicitEuler,
    Heun,
    PseudoTransient,
    RungeKuttaChebyshev,
)
from contracting.loop.method import Method
from contracting.solvers.anderson import Anderson
from contracting.solvers.automatic import Automatic
from contracting.solvers.diagonal_step import DiagonalStep
from contracting.solvers.fista import FISTA
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.solvers.splitting import DouglasRachford, ForwardBackward, PeacemanRachford
from contracting.solvers.tseng import Tseng

FLOWS = (FiringRate(), Hopfield(), ForwardBackwardFlow(), PeacemanRachfordFlow())

SPLITTINGS: tuple[Method, ...] = (
    ForwardBackward(),
    PeacemanRachford(),
    DouglasRachford(),
    DouglasRachford(relaxation=1.7),
    ForwardBackward(step=DiagonalStep()),
    PeacemanRachford(step=DiagonalStep()),
    Tseng(),
    FISTA(),
    Automatic(),
)
ACCELERATED: tuple[Method, ...] = (
    Anderson(PeacemanRachford()),
    Anderson(ForwardBackward()),
    Anderson(ExplicitEuler()),
    Anderson(DormandPrince()),
)
NEWTON: tuple[Method, ...] = (
    SemismoothNewton(),
    NewtonKrylov(),
    NewtonKrylov(flow=FiringRate()),
    NewtonKrylov(flow=ForwardBackwardFlow()),
)
EXPLICIT: tuple[Method, ...] = tuple(
    integrator(flow=flow)
    for integrator in (ExplicitEuler, Heun, RK4, BogackiShampine, DormandPrince)
    for flow in FLOWS
) + (
    RungeKuttaChebyshev(),
    RungeKuttaChebyshev(flow=Hopfield()),
    RungeKuttaChebyshev(flow=PeacemanRachfordFlow()),
)
IMPLICIT: tuple[Method, ...] = tuple(
    integrator(flow=flow) for integrator in (BackwardEuler, PseudoTransient) for flow in FLOWS
)
ALL_METHODS: tuple[Method, ...] = (*SPLITTINGS, *ACCELERATED, *NEWTON, *EXPLICIT, *IMPLICIT)
SELF_ADJOINT_ONLY = FISTA
ONE_OF_EACH: tuple[Method, ...] = (
    *(method for method in SPLITTINGS if method != DouglasRachford()),  # the relaxed one stands for both
    *ACCELERATED,
    *NEWTON,
    *(ExplicitEuler(flow=flow) for flow in FLOWS),
    Heun(flow=Hopfield()),
    RK4(flow=ForwardBackwardFlow()),
    BogackiShampine(flow=PeacemanRachfordFlow()),
    DormandPrince(flow=Hopfield()),
    RungeKuttaChebyshev(flow=FiringRate()),
    BackwardEuler(flow=PeacemanRachfordFlow()),
    PseudoTransient(flow=FiringRate()),
)
"""Every class of method once, and explicit Euler on every flow."""


def name(method: object) -> str:
    """A short test id."""
    if isinstance(method, Anderson):
        return f"Anderson-{name(method.method)}"
    flow = getattr(method, "flow", None)
    relaxation = getattr(method, "relaxation", 1.0)
    suffix = f"-{type(flow).__name__}" if flow is not None else f"-{relaxation:g}" if relaxation != 1 else ""
    if isinstance(getattr(method, "step", None), DiagonalStep):
        suffix += "-diagonal"
    return type(method).__name__ + suffix
