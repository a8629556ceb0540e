"""Streams of inputs followed frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from equilibrium.layers import EquilibriumLayer
from equilibrium.tracking.certificate import TrackingCertificate
from equilibrium.tracking.steps import FixedTracking, TrackedState


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TrackedFrame(Displayed):
    """The answer to one frame, with the leading shape of its input.

    Attributes:
        output: y, (..., out).
        output_error: certified bound on ‖y − y*‖₂, (...).
        equilibrium: z, (..., n), a start for ``layer(x, z0=…)``.
        error: certified bound on ‖z − z*‖ in the metric of the layer, (...).
        steps: how many were taken, (...).
    """

    output: Tensor
    output_error: Tensor
    equilibrium: Tensor
    error: Tensor
    steps: Tensor


class Tracker:
    r"""Follows the equilibrium of a moving input: each frame starts at the last one, with a certified error.

    If ‖u − u*‖ ≤ e at the last frame, it is at most e + L‖Δx‖ at the next, where L is a certified Lipschitz constant of
    x ↦ u* and u the state of Peaceman–Rachford, from which z is read without expansion. Its steps contract by ρ, so
    that j ≥ log((e + L‖Δx‖)/tolerance)/log(1/ρ) steps suffice, known before the first of them; j may be zero. Rounding
    is charged to each step. Rows are streams that know nothing of each other. Nothing records a gradient: for one,
    start a solve at the frame, ``layer(x, z0=frame.equilibrium)``.

    The weights are those of the layer as it is now: after training call ``refresh()``.

    Args:
        layer: a layer with a certified metric that can be written with matrices.
        tolerance: of ‖z − z*‖ in the metric, in every frame.
        step_bound: a bound on ‖Δx‖₂ from one frame to the next, with which all frames but the first take the same
            number of steps. A frame that moved farther says so by its error.
        dtype: precision of the steps. What is proved of rounding may be far more than it is, which is felt in float32.

    Raises:
        InputError: if an argument is out of range.
        PreconditionError: if no metric is certified, σ has parameters, or the steps are not proved to contract.

    Example:
        >>> tracker = Tracker(layer, tolerance=1e-3)
        >>> for x in frames:
        ...     y = tracker(x).output
    """

    def __init__(
        self,
        layer: EquilibriumLayer,
        *,
        tolerance: float = 1e-3,
        step_bound: float | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        self.tolerance = checks.positive_number("tolerance", tolerance)
        self.step_bound = None if step_bound is None else checks.positive_number("step_bound", step_bound)
        self.layer, self.dtype = layer, dtype
        self._state: TrackedState | None = None
        self._start: Tensor | None = None  # a state of other weights
        self._take(None)

    def refresh(self) -> None:
        """Take over the weights of the layer as they are now; the next frame starts at the last, with a new bound.

        The certificate is kept where it is proved of the new weights as well, as where only biases or outputs changed.
        """
        self._take(self.certificate)
        if self._state is not None:
            self._start, self._state = self._state.u, None

    def _take(self, known: TrackingCertificate | None) -> None:
        if self.step_bound is None:
            self.module = FixedTracking(self.layer, steps=1, dtype=self.dtype, certificate=known)
        else:
            tolerance, bound = self.tolerance, self.step_bound
            self.module = FixedTracking(
                self.layer, tolerance=tolerance, step_bound=bound, dtype=self.dtype, certificate=known
            )

    @property
    def certificate(self) -> TrackingCertificate:
        """ρ and L."""
        return self.module.certificate

    def reset(self) -> None:
        """Forget the last frame: the next one is solved from zero."""
        self._state = self._start = None

    def __call__(self, x: Tensor) -> TrackedFrame:
        """The next frame, (..., in) or images, with the same leading shape as the last.

        Raises:
            InputError: on another size, dtype or device, entries that are not finite, or another number of streams than
                before; the tracker is then as it was.
            PreconditionError: if rounding alone exceeds the tolerance.
        """
        checks.floating_tensor("x", x)
        state, extra = self._state, 0
        if state is None:
            state, extra = self.module.start(x, self._start), 1
        if extra or self.step_bound is None:
            found, steps = self.module.follow(x, state, self.tolerance)
        else:
            found = self.module(checks.finite("x", x), state)
            steps = found.y_error.new_full(found.y_error.shape, self.module.steps, dtype=torch.long)
        self._state = found.state
        lead = found.y.shape[:-1]
        return TrackedFrame(
            output=found.y,
            output_error=found.y_error.reshape(lead),
            equilibrium=found.z.reshape(*lead, found.z.shape[-1]),
            error=found.z_error.reshape(lead),
            steps=(steps + extra).reshape(lead),
        )


def track_inputs(
    layer: EquilibriumLayer,
    stream: Iterable[Tensor],
    *,
    tolerance: float = 1e-3,
    step_bound: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[TrackedFrame]:
    """The frames of a stream of inputs, each as it arrives; arguments and errors as of ``Tracker``.

    Args:
        layer: as for ``Tracker``.
        stream: inputs (..., in) or images, all of one leading shape, one row for each stream.
        tolerance: as for ``Tracker``.
        step_bound: as for ``Tracker``.
        dtype: as for ``Tracker``.
    """
    if not isinstance(stream, Iterable):
        raise InputError(f"stream must be an iterable of inputs, such as a list, got {type(stream).__name__}")
    tracker = Tracker(layer, tolerance=tolerance, step_bound=step_bound, dtype=dtype)
    return map(tracker, stream)
