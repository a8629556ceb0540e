"""Every solver of the library by name: what a comparison compares, and the one place where a solver is registered."""

from __future__ import annotations

from collections.abc import Mapping

from contracting.errors import InputError
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
    TorchDiffEq,
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

ROW_LIMITS: Mapping[str, int] = {"torchdiffeq-BDF": 4}
"""Solvers of which a few rows are enough, because they solve one row after the other in Python."""


_ADDED: dict[str, Method] = {}


def register_solver(name: str, method: Method) -> Method:
    """Let ``default_solvers``, and so every comparison, know a solver of your own as well; it is returned.

    Raises:
        InputError: if it is no Method, or the name is taken.
    """
    if not isinstance(method, Method):
        raise InputError(f"method must be a Method, got {method!r}")
    if name in default_solvers():
        raise InputError(f"name {name!r} is taken; known are {', '.join(default_solvers())}")
    _ADDED[name] = method
    return method


def default_solvers() -> dict[str, Method]:
    """Every method by name, also those registered; ``Method/Flow`` integrates another flow than the firing-rate one."""
    return {
        "PeacemanRachford": PeacemanRachford(),
        "ForwardBackward": ForwardBackward(),
        "DouglasRachford": DouglasRachford(),
        "DouglasRachford-1.8": DouglasRachford(relaxation=1.8),
        "PeacemanRachford-diagonal": PeacemanRachford(step=DiagonalStep()),
        "Tseng": Tseng(),
        "FISTA": FISTA(),
        "Anderson/PeacemanRachford": Anderson(PeacemanRachford()),
        "Anderson/ForwardBackward": Anderson(ForwardBackward()),
        "Automatic": Automatic(),
        "SemismoothNewton": SemismoothNewton(),
        "NewtonKrylov": NewtonKrylov(),
        "NewtonKrylov/FiringRate": NewtonKrylov(flow=FiringRate()),
        "ExplicitEuler": ExplicitEuler(),
        "Heun": Heun(),
        "RK4": RK4(),
        "RungeKuttaChebyshev": RungeKuttaChebyshev(),
        "BogackiShampine": BogackiShampine(),
        "DormandPrince": DormandPrince(),
        "BackwardEuler": BackwardEuler(),
        "PseudoTransient": PseudoTransient(),
        "ExplicitEuler/Hopfield": ExplicitEuler(flow=Hopfield()),
        "DormandPrince/Hopfield": DormandPrince(flow=Hopfield()),
        "DormandPrince/ForwardBackward": DormandPrince(flow=ForwardBackwardFlow()),
        "DormandPrince/PeacemanRachford": DormandPrince(flow=PeacemanRachfordFlow()),
        "RK4/PeacemanRachford": RK4(flow=PeacemanRachfordFlow()),
        "torchdiffeq-dopri5": TorchDiffEq("dopri5"),
        "torchdiffeq-bosh3": TorchDiffEq("bosh3"),
        "torchdiffeq-rk4": TorchDiffEq("rk4"),
        "torchdiffeq-dopri5/PeacemanRachford": TorchDiffEq("dopri5", flow=PeacemanRachfordFlow()),
        "torchdiffeq-BDF": TorchDiffEq("BDF"),
        **_ADDED,
    }
