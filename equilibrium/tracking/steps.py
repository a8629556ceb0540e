r"""A frame as a function of tensors: an input and the state before it in, an output and the state after it out.

u is the state of Peaceman–Rachford and e a certified bound on its distance to u*(x). When the input moves to x', u is
at most e₀ = e + L‖x' − x‖ away from u*(x'). The steps contract by ρ and are wrong by δ each through rounding, where by
‖uᵢ‖ ≤ ‖u₀‖ + e₀ + eᵢ a bound on δ is c·eᵢ + g with the c of ``rounding`` and g known before the first step. So j steps
leave

    eⱼ ≤ σʲe₀ + (1 − σʲ)/(1 − σ)·g,   σ = ρ + c,

and the j that brings it below a tolerance is known before the frame is solved. When it has been, the last step says
more: e ≤ (ρ‖uⱼ − uⱼ₋₁‖ + δ)/(1 − ρ). The smaller of the two is handed on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contracting import checks
from contracting.errors import InputError, PreconditionError
from contracting.precision import as_computed, full_precision
from equilibrium.layers import EquilibriumLayer, rows_of
from equilibrium.lipschitz.system import as_double
from equilibrium.tracking.certificate import TrackingCertificate, certify_tracking
from equilibrium.tracking.rounding import rounding_of

_SCALAR = 64  # roundings that a formula of a bound is charged, many more than it has
_FOR_STEPS = 0.99  # share of a tolerance that is kept by a number of steps set beforehand; the rest is for rounding


class TrackedState(NamedTuple):
    """What is handed from frame to frame, one row for each stream, in the precision of the steps.

    Attributes:
        x: the last frame, (streams, in).
        u: the state of Peaceman–Rachford, (streams, n).
        error: certified bound on ‖u − u*(x)‖ in the metric, (streams,).
    """

    x: Tensor
    u: Tensor
    error: Tensor


class TrackedOutput(NamedTuple):
    """What a frame gives, one row for each stream.

    Attributes:
        y: the output, (..., out).
        y_error: certified bound on its distance ‖y − y*‖₂ to the exact output for this frame, (streams,).
        z: the equilibrium, (streams, n).
        z_error: certified bound on ‖z − z*‖ in the metric, (streams,).
        state: for the next frame.
    """

    y: Tensor
    y_error: Tensor
    z: Tensor
    z_error: Tensor
    state: TrackedState


class _Frame(NamedTuple):
    """What is known of a frame before its first step."""

    state: TrackedState  # before the frame
    rows: Tensor  # x', (streams, in)
    lead: tuple[int, ...]  # leading shape of the input
    offset: Tensor  # 2K(αq), (streams, n)
    input_size: Tensor  # ‖x'‖₂, (streams,)
    state_size: Tensor  # ‖u₀‖ + ‖h(0)‖
    first: Tensor  # e₀
    drift: Tensor  # g


class FixedTracking(nn.Module):
    r"""Follows the equilibrium of a moving input by a fixed number of steps, with a certified error of every frame.

    ``forward(x, state)`` is a graph without a branch on data, for ``torch.compile(fullgraph=True)`` and
    ``torch.export``; it records no gradient. ``start(x)`` makes a state for the first frame, and ``follow(x, state,
    tolerance)`` brings it within a tolerance. The error is certified however far an input moves; where none moves
    farther than ``step_bound``, it stays within the tolerance, unless rounding alone adds more than a hundredth of it.

    Args:
        layer: a layer with a certified metric that can be written with matrices; its weights are copied.
        steps: Peaceman–Rachford steps of each frame.
        tolerance: in place of ``steps``, and together with ``step_bound``: the smallest number is taken that keeps
            ‖u − u*‖, and with it ‖z − z*‖, within the tolerance, in the metric.
        step_bound: a bound on ‖x' − x‖₂ from one frame to the next.
        dtype: precision of the steps; outputs have that of the layer.
        certificate: one of earlier weights, which saves the search for a new one where it is proved of these as well.

    Attributes:
        certificate: the constants ρ and L that the errors rest on.
        rounding: what every step is charged for rounding.

    Raises:
        InputError: if an argument is out of range, or neither ``steps`` nor the two others are given.
        PreconditionError: if no metric is certified, σ has parameters, or the steps are not proved to contract.
    """

    M: Tensor
    U: Tensor
    b: Tensor
    C: Tensor
    c: Tensor
    D: Tensor | None
    root: Tensor
    example: Tensor

    @torch.no_grad()
    def __init__(
        self,
        layer: EquilibriumLayer,
        *,
        steps: int | None = None,
        tolerance: float | None = None,
        step_bound: float | None = None,
        dtype: torch.dtype = torch.float64,
        certificate: TrackingCertificate | None = None,
    ):
        super().__init__()
        if not isinstance(layer, EquilibriumLayer):
            raise InputError(f"layer must be an EquilibriumLayer such as LBEN(4, 20, 2), got {type(layer).__name__}")
        if (steps is None) == (step_bound is None) or (step_bound is None) != (tolerance is None):
            raise InputError("give either steps, for example 4, or tolerance and step_bound, for example 1e-3 and 0.01")
        if dtype not in (torch.float32, torch.float64):
            raise InputError(f"dtype must be torch.float64 or torch.float32, got {dtype}: less proves nothing")
        self.activation, self._shapes, self._dtype = layer.activation, layer.input_shapes, dtype
        weights = layer.weights().dense()
        example = weights.input.new_zeros(0)
        self.certificate = certify_tracking(weights, layer.activation, certificate)
        identity = torch.eye(weights.hidden_features, dtype=torch.float64)
        A = self.certificate.step * (identity - as_double(weights.state.to_dense()))
        M = torch.linalg.solve(identity + A, identity - A).to(dtype)
        self.rounding = rounding_of(self.certificate, weights, layer.activation, M, example.dtype)
        if self.decay >= 1:
            raise PreconditionError(
                f"tracking in {dtype} is not proved to converge: steps contract by {self.certificate.factor:.6g}, "
                "which rounding may undo; use dtype=torch.float64"
            )
        self.register_buffer("example", example, persistent=False)
        constants = {"M": M, "root": self.certificate.root, "U": weights.input, "b": weights.bias}
        constants |= {"C": weights.output, "c": weights.output_bias, "D": weights.feedthrough}
        for name, value in constants.items():
            copied = None if value is None else value.detach().to(example.device, dtype).clone()
            self.register_buffer(name, copied, persistent=False)
        if steps is None:
            self.steps = self._lasting(
                checks.positive_number("tolerance", tolerance), checks.positive_number("step_bound", step_bound)
            )
        else:
            self.steps = checks.whole_number("steps", steps)

    @property
    def decay(self) -> float:
        """σ = ρ + c, by which a step is proved to contract, rounding included."""
        return self.certificate.factor + self.rounding.state

    def _lasting(self, tolerance: float, reach: float) -> int:
        kept = _FOR_STEPS * tolerance
        first = tolerance + self.certificate.speed * reach
        return max(1, math.ceil(math.log(kept / first) / math.log(self.decay)))

    def forward(self, x: Tensor, state: TrackedState) -> TrackedOutput:
        """A frame, (..., in) or images, one for each stream, and the state before it.

        Raises:
            InputError: on another size, dtype, device or number of streams.
        """
        with torch.no_grad(), full_precision(x):
            return self._after(self._before(x, state), self.steps)

    def start(self, x: Tensor, u: Tensor | None = None) -> TrackedState:
        """A state at x after one step from u, whose error that step proves: ‖T(u) − u*‖ ≤ (ρ‖T(u) − u‖ + δ)/(1 − ρ).

        Args:
            x: the first frame.
            u: any state, (streams, n), such as one of other weights; zeros if None.

        Raises:
            InputError: on another size, dtype or device, or entries of x that are not finite.
        """
        with torch.no_grad(), full_precision(x):
            rows = self._rows(checks.finite("x", x))[0]
            u = rows.new_zeros(len(rows), len(self.root)) if u is None else u
            frame = self._before(x, TrackedState(rows, u, rows.new_zeros(len(rows))))
            stepped = self._step(u, frame.offset)
            return TrackedState(rows, stepped, self._seen(stepped - u, frame.drift))

    def follow(self, x: Tensor, state: TrackedState, tolerance: float) -> tuple[TrackedOutput, Tensor]:
        """``forward`` with as many steps as each stream needs for a tolerance in the metric, and how many these are.

        Raises:
            InputError: as ``forward``, and if x is not finite.
            PreconditionError: if rounding alone exceeds the tolerance.
        """
        with torch.no_grad(), full_precision(x):
            frame = self._before(checks.finite("x", x), state)
            counts = self._needed(frame, tolerance)
            steps = torch.from_numpy(counts).to(frame.first.device)
            same = len(counts) > 0 and bool((counts == counts[0]).all())
            return self._after(frame, int(counts[0]) if same else steps), steps

    def _rows(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        if self.M.dtype != self._dtype:
            raise PreconditionError(
                f"FixedTracking was made for steps in {self._dtype} and has been converted to {self.M.dtype}, for "
                "which its bounds do not hold; make another one with dtype=…"
            )
        if self._dtype == torch.float32 and not torch.compiler.is_compiling() and _reduced():
            raise PreconditionError(
                "products of float32 are allowed to be less precise than float32, for which no bound of this tracker "
                'holds: call torch.set_float32_matmul_precision("highest"), or track in float64'
            )
        rows, lead = rows_of(as_computed("x", x, "the layer", self.example), self._shapes)
        return rows.to(self._dtype), lead

    def _before(self, x: Tensor, state: TrackedState) -> _Frame:
        rows, lead = self._rows(x)
        if rows.shape[0] != state.u.shape[0]:
            raise InputError(
                f"x must have one row for each of {state.u.shape[0]} streams, as the last frame had, got "
                f"{rows.shape[0]}; reset() a tracker to follow others"
            )
        checks.shape("state.u", state.u, (rows.shape[0], self.root.shape[0]))
        charged = self.rounding
        driven = self.certificate.step * nn.functional.linear(rows, self.U, self.b)
        moved, size = (charged.norms * torch.linalg.vector_norm(t, dim=-1) for t in (rows - state.x, rows))
        first = (state.error + self.certificate.speed * moved) * self._up
        state_size = self._norm(state.u) + charged.origin
        drift = (charged.state * (state_size + first) + charged.input * size + charged.constant) * self._up
        offset = nn.functional.linear(driven, self.M) + driven
        return _Frame(state, rows, lead, offset, size, state_size, first, drift)

    def _needed(self, frame: _Frame, tolerance: float) -> NDArray[np.int64]:
        """The smallest number of steps for each stream, (streams,)."""
        # numpy takes a fifth of the time for so few numbers
        size, first, drift = torch.stack([frame.state_size, frame.first, frame.drift]).double().cpu().numpy()
        # at most by the steps, and by reading z from the last u, of which ‖u‖ ≤ ‖u₀‖ + 2e₀
        floor = (drift + self.rounding.state * first) / (1 - self.decay) + self.rounding.reading * (size + 2 * first)
        wanted = tolerance * (1 - 4 * _SCALAR * self.rounding.unit)
        if not (floor < wanted).all():
            raise PreconditionError(
                f"tolerance={tolerance:g} is below what rounding in {self._dtype} may add for this x, "
                f"{float(floor.max()):.1e}: ask for more, or track in float64 with a layer in float64"
            )
        far = first + floor > wanted
        steps = np.ceil(np.log((wanted - floor) / np.where(far, first, 1.0)) / math.log(self.decay))
        return np.where(far, steps, 0.0).astype(np.int64)

    def _after(self, frame: _Frame, steps: int | Tensor) -> TrackedOutput:
        """The frame after so many steps, of all streams or of each."""
        u = last = frame.state.u
        if isinstance(steps, int):
            for _ in range(steps):
                last, u = u, self._step(u, frame.offset)
        else:
            for taken in range(int(steps.max()) if len(steps) else 0):
                going = (steps > taken)[:, None]
                last, u = torch.where(going, u, last), torch.where(going, self._step(u, frame.offset), u)
        return self._read(frame, u, self._error(frame, steps, u - last))

    def _error(self, frame: _Frame, steps: int | Tensor, change: Tensor) -> Tensor:
        """The smaller of what is known of so many steps beforehand and of what the last of them shows."""
        decay, most = self.decay, 1 / (1 - self.decay)
        seen = self._seen(change, frame.drift + self.rounding.state * torch.maximum(frame.first, most * frame.drift))
        if isinstance(steps, int):
            known = (decay**steps * frame.first + min(steps, most) * frame.drift) * self._up
            return torch.minimum(known, seen) if steps else known
        count = steps.to(change)
        known = (decay**count * frame.first + count.clamp(max=most) * frame.drift) * self._up
        return torch.where(steps > 0, torch.minimum(known, seen), known)

    def _step(self, u: Tensor, offset: Tensor) -> Tensor:
        reflected = 2 * self.activation.prox_value(u, self.certificate.step) - u
        return torch.addmm(offset, reflected, self.M.mT)

    def _seen(self, change: Tensor, drift: Tensor) -> Tensor:
        """What the last step proves of the error after it."""
        factor = self.certificate.factor
        return (factor * self._norm(change) + drift) / (1 - factor) * self._up

    def _read(self, frame: _Frame, u: Tensor, error: Tensor) -> TrackedOutput:
        charged, size = self.rounding, self._norm(u) + self.rounding.origin
        z = self.activation.prox_value(u, self.certificate.step)
        y = nn.functional.linear(z, self.C, self.c)
        if self.D is not None:
            y = y + nn.functional.linear(frame.rows, self.D)
        y_error = charged.readout * error + charged.out_state * size
        y_error = (y_error + charged.out_input * frame.input_size + charged.out_constant) * self._up
        z_error = (error + charged.reading * size) * self._up
        y, z = (t.to(self.example.dtype) for t in (y, z))
        y = y.reshape(*frame.lead, y.shape[-1])
        return TrackedOutput(y, y_error, z, z_error, TrackedState(frame.rows, u, error))

    def _norm(self, u: Tensor) -> Tensor:
        """‖r∘u‖₂ or a little more."""
        return self.rounding.norms * torch.linalg.vector_norm(self.root * u, dim=-1)

    @property
    def _up(self) -> float:
        """By what a bound is multiplied for the rounding of its own formula."""
        return 1 + _SCALAR * self.rounding.unit

    def extra_repr(self) -> str:
        """What was set beforehand."""
        return f"steps={self.steps}, factor={self.certificate.factor:.4g}, speed={self.certificate.speed:.4g}"


def _reduced() -> bool:
    return torch.get_float32_matmul_precision() != "highest"
