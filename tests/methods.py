"""Every solver of the library, for the contract suite."""

from __future__ import annotations

from contracting.flows import FiringRate, ForwardBackwardFlow, Hopfield, PeacemanRachfordFlow
from contracting.integrators import (
    RK4,
    BackwardEuler,
    BogackiShampine,
    DormandPrince,
    ExplicitEuler,
    Heun,
    PseudoTransient,
)
from contracting.solve import Method
from equilibrium.newton import SemismoothNewton
from equilibrium.splitting import DouglasRachford, ForwardBackward, PeacemanRachford

FLOWS = (FiringRate(), Hopfield(), ForwardBackwardFlow(), PeacemanRachfordFlow())

SPLITTINGS: tuple[Method, ...] = (
    ForwardBackward(),
    PeacemanRachford(),
    DouglasRachford(),
    DouglasRachford(relaxation=1.7),
)
EXPLICIT: tuple[Method, ...] = tuple(
    integrator(flow=flow)
    for integrator in (ExplicitEuler, Heun, RK4, BogackiShampine, DormandPrince)
    for flow in FLOWS
)
IMPLICIT: tuple[Method, ...] = tuple(
    integrator(flow=flow) for integrator in (BackwardEuler, PseudoTransient) for flow in FLOWS
)
ALL_METHODS: tuple[Method, ...] = (*SPLITTINGS, SemismoothNewton(), *EXPLICIT, *IMPLICIT)


def name(method: object) -> str:
    """A short test id."""
    flow = getattr(method, "flow", None)
    relaxation = getattr(method, "relaxation", 1.0)
    suffix = f"-{type(flow).__name__}" if flow is not None else f"-{relaxation:g}" if relaxation != 1 else ""
    return type(method).__name__ + suffix
