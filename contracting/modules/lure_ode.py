"""Neural ODEs with inputs and outputs as modules: any parameterisation, activation, solver and integrator."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation, Curved
from contracting.activations.catalogue import Tanh
from contracting.activations.names import as_activation
from contracting.certificates.lure.checker import dissipation_margin
from contracting.certificates.lure.records import (
    Dissipation,
    GainCertificate,
    PassivityCertificate,
    check_dissipation,
)
from contracting.certificates.records import Certificate, CertificateError
from contracting.display import Displayed
from contracting.errors import InputError
from contracting.flows.driven import Input, input_at
from contracting.gradients.implicit import Backward, Implicit
from contracting.loop.method import Method, checked_method
from contracting.loop.records import Stop
from contracting.lure.flow import LureFlow
from contracting.lure.system import LureSystem
from contracting.metrics import FullP, WeightedL2
from contracting.modules.diverged import diverged
from contracting.modules.inputs import SampledInput, ZeroOrderHold, merged_times
from contracting.modules.parameterization import LureParameterization
from contracting.modules.settings import WithSettings
from contracting.modules.weights import LureWeights
from contracting.precision import as_computed, full_precision
from contracting.problem import EquilibriumProblem
from contracting.simulation.events import Event
from contracting.simulation.time_steps import AdaptiveStep, Integrator
from contracting.simulation.times import time_grid
from contracting.simulation.trajectories import Trajectory, simulate
from contracting.solvers.automatic import Automatic
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.relay import Relay
from contracting.solvers.splitting import PeacemanRachford
from contracting.types import UNIT_SLOPES

Signal = Tensor | SampledInput | Input
"""An input: (k,) or (batch, k) for a constant, (T, batch, k) or (T, 1, k) held from each time of the trajectory to the
next, a ``SampledInput``, or a function u(t) of a float64 time of shape () or (batch, 1)."""

# With the step 1 the prox of a curved σ is σ itself. In 25 neurons of moderate weights such a step costs a tenth of one
# with the best step, and the number of steps is hardly larger; D of a module in training is rarely far from that. The
# limit is where Newton's method, which takes about as long as 200 such steps, is the better choice.
_CURVED = Relay(first=PeacemanRachford(step=1.0), after=200, then=SemismoothNewton())


# Shortages of input passivity that are tried in turn, in units of outputs per input: rounding errors of float64 and of
# float32 come to about the second and the fourth.
_SHORTAGES = (0.0, 1e-12, 1e-9, 1e-6, 1e-4, 1e-2)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Response(Displayed):
    """What a module did with an input.

    Attributes:
        times: (T,), or (T, batch) where each row has a grid of its own; float64.
        states: s, (T, batch, n).
        outputs: y, (T, batch, p).
        steps: (batch,), time steps that were accepted.
        stopped: (batch,), when an event ended the row, infinite where none did; None if none was asked for.
    """

    times: Tensor
    states: Tensor
    outputs: Tensor
    steps: Tensor
    stopped: Tensor | None = None
    continued: Callable[[Tensor], tuple[Tensor, Tensor]] | None = field(default=None, repr=False)

    def at(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """The states and the outputs at other times between the first and the last: (S, batch, n), (S, batch, p).

        Args:
            times: (S,), or (S, batch) with times for each row, in any order.

        Raises:
            InputError: on another shape, or times outside.
        """
        assert self.continued is not None
        return self.continued(times)


class LureODE(WithSettings):
    r"""s' = As + Bw + B₂u + e, w = σ(Cs + Dw + D₁₂u + b), y = C₂s + D₂₁w + D₂₂u + b_y, for any parameterisation.

    Args:
        parameterization: free parameters with ``explicit() -> LureWeights``.
        activation: σ, monotone with slopes in [0, 1]; None takes ``Tanh()``, as a smooth field suits integrators.
        solver: the method that finds w; None takes ``Automatic()``.
        stop: when w counts as found; None asks for more digits than ``Stop()``, so that what is left of an error does
            not disturb the time steps.
        backward: how w is differentiated.
        integrator: ``AdaptiveStep()`` if None, ``FixedStep(step=…)``, or one of torchdiffeq.
        rest: a state, (n,), at which it rests where the input is zero: e then follows from it. None leaves e free.

    Raises:
        InputError: on an inadmissible activation, or something that is no solver or integrator.
    """

    def __init__(
        self,
        parameterization: LureParameterization,
        *,
        activation: Activation | nn.Module | None = None,
        solver: Method | None = None,
        stop: Stop | None = None,
        backward: Backward | None = None,
        integrator: Integrator | None = None,
        rest: Tensor | None = None,
    ):
        super().__init__()
        if not isinstance(parameterization, LureParameterization):
            raise InputError(
                f"parameterization must be a LureParameterization, got {type(parameterization).__name__}"
            )
        self.parameterization = parameterization
        self.activation = Tanh() if activation is None else as_activation(activation)
        self.solver = None if solver is None else checked_method("solver", solver)
        if not (stop is None or isinstance(stop, Stop)):
            raise InputError(f"stop must be a Stop such as Stop(rtol=1e-6), or None, got {stop!r}")
        self.stop = stop
        self.backward: Backward = Implicit() if backward is None else backward
        self.integrator: Integrator = AdaptiveStep() if integrator is None else integrator
        if not callable(getattr(self.integrator, "advance", None)):
            raise InputError(f"integrator must be AdaptiveStep() or FixedStep(step=…), got {integrator!r}")
        if rest is not None:
            rest = checks.finite("rest", checks.floating_tensor("rest", rest))
            rest = checks.shape("rest", rest, (parameterization.states,))
            rest = rest.detach().to(self.example).clone()
        self.register_buffer("rest", rest)

    rest: Tensor | None

    @property
    def settings(self) -> dict[str, Any]:
        """The activation; those of the parameterisation are its own."""
        return {"activation": re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.activation))}

    @property
    def example(self) -> Tensor:
        """A tensor whose dtype and device are those of the module."""
        return self.parameterization.example

    def weights(self) -> LureWeights:
        """The matrices of the present parameters, differentiable in these."""
        checks.with_values("the module", self.example)
        try:
            with full_precision(self.example):
                weights = self.parameterization.explicit()
        except (InputError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            raise diverged(self.parameterization, error) from error
        made = [weights.A, weights.B, weights.multiplier, weights.multiplier.reciprocal()]
        if not all(bool(torch.isfinite(m.detach()).all()) for m in (*made, *self.parameterization.parameters())):
            raise diverged(self.parameterization, InputError("the matrices are not finite"))
        return weights

    def flow(self, u: Tensor | Input | None = None) -> LureFlow:
        """The field s' = f(t, s) under an input that is constant or a function of time; what certificates take.

        Args:
            u: (k,), (batch, k), or u(t); None means zero.
        """
        weights = self.weights()
        solver = self.solver or (_CURVED if isinstance(self.activation, Curved) else Automatic())
        flow = weights.flow(self.activation, solver, self.stop or _accurate(weights.D), self.backward)
        if self.rest is not None and flow.e is not None:
            flow = replace(flow, e=flow.e - flow(0.0, self.rest[None]))
        return flow if u is None else flow.with_input(u)

    def system(self) -> LureSystem:
        """The matrices as numbers, which certificates are about."""
        return self.flow().system()

    @torch.no_grad()
    def certificates(self) -> list[Certificate | Dissipation]:
        """What is promised and proved of the present numbers as they are: the rate, then gain and passivity.

        What the rounding of the matrices hides is left out, as may happen for extreme parameters in float32. Without a
        feedthrough, passivity is one of infinite precision: rounded numbers have it up to a shortage of input
        passivity, which is the ``input_index`` that is said.
        """
        free, weights, flow = self.parameterization, self.weights(), self.flow()
        system, rate = flow.system(), free.contraction_rate
        if rate is None:
            return []
        metric = None if weights.P is None or not free.states else FullP(weights.P.to("cpu", torch.float64))
        lam = weights.multiplier.to("cpu", torch.float64)
        about: dict[str, Any] = {
            "rate": rate, "metric": metric, "multiplier": lam, "slopes": UNIT_SLOPES,
            "method": "direct parameterisation", "flow": type(self).__name__,
        }  # fmt: skip
        found: list[Certificate | Dissipation] = []
        P = None if metric is None else metric.matrix
        margin = dissipation_margin(system.with_slopes(UNIT_SLOPES), P, lam, rate)
        if metric is not None and margin > 0:
            found.append(Certificate(**about, margin=margin))
        claims: list[Dissipation] = []
        if free.lipschitz is not None:
            claims.append(GainCertificate(gain=free.lipschitz, **about))
        if free.passive is not None:
            own, out = free.passive.input, free.passive.output
            claims += [
                PassivityCertificate(input_index=own - less, output_index=out, **about) for less in _SHORTAGES
            ]
        for claim in claims:
            if not any(type(known) is type(claim) for known in found):
                with suppress(CertificateError):
                    found.append(replace(claim, margin=check_dissipation(claim, system)))
        return found

    def forward(
        self, s0: Tensor | None, t: Tensor, u: Signal | None = None, *, event: Event | None = None
    ) -> Tensor:
        """y at the times t: (batch, n), (T,) or (T, batch) -> (T, batch, p), differentiable in s0, t, u and parameters.

        Args:
            s0: the state at the first time, (batch, n); None means zero.
            t: times, rising, or falling to integrate backwards; (T, batch) gives each row a grid of its own.
            u: the input; see ``Signal``. None means zero.
            event: g(t, s), (batch, 1), (batch, n) -> (batch,): a row ends, and rests with its output, where the sign of
                g first changes.

        Raises:
            InputError: on shapes, dtypes or times that do not fit.
            SolveError: if a row could not be followed to its last time, or its w was not found.
        """
        return self.response(s0, t, u, event=event).outputs

    def response(
        self, s0: Tensor | None, t: Tensor, u: Signal | None = None, *, event: Event | None = None
    ) -> Response:
        """The states, the outputs and when rows ended, and both at any other time; arguments as for ``forward``."""
        with full_precision(self.example):
            start, grid, signal = self._checked(s0, t, u)
            flow, rows = self.flow(signal), len(start)
            knots = signal.times if isinstance(signal, SampledInput) else None
            if not self.parameterization.states or not rows or knots is None or torch.equal(knots, grid):
                times, places = grid, None
            else:
                times, places = merged_times(grid, knots)
            path = self._path(flow, start, times.expand(-1, rows), event)
            moments, states = grid.expand(-1, rows), path.states
            if places is not None:
                states = states.gather(0, places.expand(-1, rows)[:, :, None].expand(-1, -1, start.shape[1]))

            def outputs(states: Tensor, moments: Tensor) -> Tensor:
                # a row that has ended keeps its output too
                return self._outputs(flow, states, path.until_stopped(moments), signal)

            def continued(times: Tensor) -> tuple[Tensor, Tensor]:
                states = path.at(times) if path.way is not None else start.expand(len(times), -1, -1)
                return states, outputs(states, times.reshape(len(times), -1).to(grid).expand(-1, rows))

            return Response(
                times=grid if t.ndim == 2 else grid[:, 0],
                states=states,
                outputs=outputs(states, moments),
                steps=path.steps,
                stopped=path.stopped,
                continued=continued,
            )

    def _path(self, flow: LureFlow, start: Tensor, times: Tensor, event: Event | None) -> Trajectory:
        if self.parameterization.states and len(start):
            return simulate(flow, start, times, integrator=self.integrator, event=event)
        if event is not None:
            raise InputError("event is about a state: this module has none (states=0), or s0 has no rows")
        steps = torch.zeros(len(start), dtype=torch.int64, device=start.device)
        return Trajectory(times=times, states=start.expand(len(times), -1, -1), steps=steps)

    def _outputs(self, flow: LureFlow, states: Tensor, moments: Tensor, signal: Tensor | Input | None) -> Tensor:
        bias = self.parameterization.output_bias
        if bias is None:
            return states
        rows = states.shape[1]
        if callable(signal):
            kind: dict[str, Any] = {"size": flow.inputs, "like": self.example, "name": "u", "rows": rows}
            values = [input_at(signal, moment[:, None], **kind) for moment in moments]
            flow = flow.with_input(torch.cat([value.expand(rows, -1) for value in values]))
        elif signal is not None and signal.ndim == 2 and len(signal) > 1:
            flow = flow.with_input(signal.repeat(len(states), 1))
        outputs = flow.output(states.flatten(0, 1)) + bias
        return outputs.reshape(len(states), rows, len(bias))

    def equilibrium_problem(self, u: Tensor | None = None) -> EquilibriumProblem:
        """The problem that w solves at rest under constant inputs, (batch, k): weight D − CA⁻¹B, metric Λ.

        Any splitting, Newton method or integrator of the library solves it; ``flow(u).steady_state(w)`` is the state.
        """
        metric = WeightedL2(self.parameterization.multiplier.detach())
        return self.flow(u).equilibrium_problem(metric=metric)

    def steady_state(self, u: Tensor | None = None) -> Tensor:
        """s at rest under constant inputs, (batch, k) -> (batch, n), differentiable; its equilibrium is split for."""
        flow = self.flow(u)
        problem = flow.equilibrium_problem(metric=WeightedL2(self.parameterization.multiplier.detach()))
        return flow.steady_state(self.backward.equilibrium(problem, flow.solver or Automatic(), flow.stop or Stop()))

    def _checked(
        self, s0: Tensor | None, t: Tensor, u: Signal | None
    ) -> tuple[Tensor, Tensor, Tensor | Input | None]:
        """The start, the times, (T, 1) or (T, batch), and the input, of as many rows."""
        free, like = self.parameterization, checks.with_values("the module", self.example)
        if u is not None and not free.inputs:
            raise InputError("u must be None: this module has no inputs (inputs=0)")
        rows = _rows(s0, t, u)
        if s0 is None:
            s0 = like.new_zeros(rows, free.states)
        checks.shape("s0", as_computed("s0", s0, "the module", like), (rows, free.states))
        grid = time_grid(t, rows).to(like.device)
        if t.requires_grad:
            grid = t.reshape(len(t), -1).to(grid)
        if isinstance(u, Tensor) and u.ndim == 3:
            u = ZeroOrderHold(u)
        if isinstance(u, SampledInput):
            u = u.on(t)
            as_computed("u", u.values, "the module", like)
            checks.last_size("u", u.values, free.inputs)
            if u.rows not in (1, rows):
                raise InputError(f"u must have one row or {rows}, as many as s0, got {u.rows}")
        elif isinstance(u, Tensor):
            u = as_computed("u", checks.last_size("u", u, free.inputs), "the module", like)
            if u.ndim == 2 and len(u) not in (1, rows):
                raise InputError(f"u must have one row or {rows}, as many as s0, got {len(u)}")
        elif u is not None and not callable(u):
            raise InputError(f"u must be a tensor, a ZeroOrderHold or LinearInterpolation, or u(t), got {u!r}")
        return s0, grid, u

    def extra_repr(self) -> str:
        """Activation, and what else is not as by default."""
        return f"activation={self.activation}, integrator={type(self.integrator).__name__}"


def _rows(s0: Tensor | None, t: Any, u: Signal | None) -> int:
    """How many rows the arguments have."""
    if s0 is not None:
        if checks.floating_tensor("s0", s0).ndim != 2:
            raise InputError(f"s0 must have shape (batch, states), got {tuple(s0.shape)}")
        return len(s0)
    if isinstance(u, SampledInput):
        return u.rows
    if isinstance(u, Tensor) and u.ndim in (2, 3):
        return u.shape[-2]
    return t.shape[1] if isinstance(t, Tensor) and t.ndim == 2 else 1


def _accurate(D: Tensor | None) -> Stop:
    """Three digits more than usual, as far as rounding leaves them."""
    if D is None:
        return Stop()
    eps = torch.finfo(D.dtype).eps
    size = float(torch.linalg.matrix_norm(D.detach())) if D.numel() else 0.0
    return Stop(rtol=min(1e-2, max(1e-11 if eps < 1e-12 else 1e-6, 4 * eps * (1 + size))))

