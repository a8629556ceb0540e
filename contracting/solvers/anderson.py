"""Anderson acceleration around any method, safeguarded by the residual of the problem, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from contracting.loop.method import Family, Iteration, Method, State, checked_method
from contracting.loop.records import Stop
from contracting.problem import Problem
from contracting.solvers.splitting import PeacemanRachford


@dataclass(frozen=True)
class Anderson(Method):
    r"""s ← T(s) − Σ γⱼ ΔT(s)ⱼ with γ = argmin ‖f − Σ γⱼ Δfⱼ‖, f = T(s) − s, where T is one step of another method.

    Every row has its own coefficients, from its own last ``window`` steps, by a small regularised least-squares fit.
    A row takes the extrapolated state only if the residual z − σ(Wz + q) there is no larger than after the plain step:
    it is never behind the step that it would have made. Both residuals cost a product with W each, so a step costs two
    products more than that of the method inside; it pays where that method needs several hundred steps.

    A state that is one tensor (splittings, fixed-step integrators) is extrapolated itself. A method with memory (step
    sizes, momentum) has no fixed T: it runs on untouched, and the extrapolated z is an answer whenever its residual is
    the smaller one. Little is to be gained there: not for Newton's method or adaptive integrators.

    Args:
        method: what to accelerate.
        window: number of earlier steps that take part.

    Raises:
        InputError: if ``method`` is no method or accelerates already.

    Source: Walker and Ni, Anderson acceleration for fixed-point iterations, SIAM J. Numer. Anal. 49 (2011).
    """

    method: Method = field(default_factory=PeacemanRachford)
    window: int = field(default=5, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(checked_method("method", self.method), Anderson):
            raise InputError(f"method accelerates already: {self.method!r}")
        checks.whole_number("window", self.window)

    @property
    def family(self) -> Family:
        """That of the method inside."""
        return self.method.family

    @property
    def solves_systems(self) -> bool:
        """As the method inside."""
        return self.method.solves_systems

    def chosen(self, problem: Problem, stop: Stop) -> Method:
        """Around the method that the one inside chooses."""
        return replace(self, method=self.method.chosen(problem, stop))

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration on one problem; refuses what the method inside refuses."""
        return _AndersonIteration(problem, self.method.bind(problem, stop), self.window)


class _Accelerated(NamedTuple):
    inner: State
    df: Tensor  # differences of f = T(s) − s, (batch, window, n), the latest last
    dt: Tensor  # differences of T(s)
    last_f: Tensor
    last_mapped: Tensor
    age: Tensor  # how many steps the row has made, (batch,)
    z: Tensor


class _AndersonIteration(Iteration):
    def __init__(self, problem: Problem, inner: Iteration, window: int):
        self.problem, self.inner = problem, inner
        self.window = min(window, problem.size)
        self.step_size, self.separable = inner.step_size, inner.separable

    def init(self, z0: Tensor) -> State:
        inner = self.inner.init(z0)
        history = z0.new_zeros(z0.shape[0], self.window, z0.shape[1])
        return _Accelerated(inner, history, history, z0, z0, z0.new_zeros(z0.shape[0]), self.inner.read(inner))

    def step(self, state: State) -> State:
        now = _Accelerated(*state)
        plain = self.inner.step(now.inner)
        mapped = self._vector(plain)
        f = mapped - self._vector(now.inner)
        known = (now.age > 0)[:, None, None]
        df = torch.cat([now.df[:, 1:], torch.where(known, (f - now.last_f)[:, None], 0.0)], 1)
        dt = torch.cat([now.dt[:, 1:], torch.where(known, (mapped - now.last_mapped)[:, None], 0.0)], 1)
        candidate = mapped - (_coefficients(df, f)[:, None] @ dt)[:, 0]
        alone = _is_one_tensor(plain)
        z, plain_z = (self.inner.read(_with(plain, s)) if alone else s for s in (candidate, mapped))
        accept = (self._residual(z) <= self._residual(plain_z))[:, None]
        if alone:
            plain = _with(plain, torch.where(accept, candidate, mapped))
        return _Accelerated(plain, df, dt, f, mapped, now.age + 1, torch.where(accept, z, plain_z))

    def read(self, state: State) -> Tensor:
        return _Accelerated(*state).z

    def given_up(self, state: State) -> Tensor | None:
        return self.inner.given_up(_Accelerated(*state).inner)

    def advice(self) -> str | None:
        return self.inner.advice()

    def _vector(self, inner: State) -> Tensor:
        vector: Tensor = inner[0] if _is_one_tensor(inner) else self.inner.read(inner)
        return vector

    def _residual(self, z: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self.problem.residual(z), dim=-1)


def _is_one_tensor(state: State) -> bool:
    return isinstance(state[0], Tensor) and not any(isinstance(entry, Tensor | tuple) for entry in state[1:])


def _with(state: State, vector: Tensor) -> State:
    """The same state with another tensor for its only one."""
    entries = (vector, *state[1:])
    return type(state)(*entries) if hasattr(state, "_fields") else entries


def _coefficients(differences: Tensor, target: Tensor) -> Tensor:
    """argmin over γ of ‖target − Σ γⱼ differencesⱼ‖², regularised: (batch, m, n), (batch, n) -> (batch, m)."""
    eps = torch.finfo(target.dtype).eps
    size = torch.linalg.vector_norm(differences, dim=-1)
    unit = differences / torch.where(size > 0, size, 1.0)[:, :, None]
    gram = unit @ unit.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(eps**0.75)  # steps that are nearly parallel say nothing apart
    right = unit @ target[:, :, None]
    factor, _ = torch.linalg.cholesky_ex(gram)
    weights = torch.cholesky_solve(right, factor)[:, :, 0]
    return torch.where(size > 0, weights / torch.where(size > 0, size, 1.0), 0.0)
