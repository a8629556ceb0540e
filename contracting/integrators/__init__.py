"""ODE integrators as methods on the one loop: explicit, implicit, and the adapter to torchdiffeq."""

from contracting.integrators.chebyshev import RungeKuttaChebyshev
from contracting.integrators.explicit import RK4, BogackiShampine, DormandPrince, ExplicitEuler, Heun
from contracting.integrators.implicit import BackwardEuler, PseudoTransient
from contracting.integrators.torchdiffeq_adapter import TorchDiffEq

__all__ = [
    "BackwardEuler", "BogackiShampine", "DormandPrince", "ExplicitEuler", "Heun", "PseudoTransient", "RK4",
    "RungeKuttaChebyshev", "TorchDiffEq",
]  # fmt: skip
