r"""A contracting flow follows its moving equilibrium: measured tracking error beside its bound.

For a flow that contracts at rate c in a norm, under an input q(t) with steady state s*(t) of the frozen input,

    ‖s(t) − s*(t)‖ ≤ e^{−ct}‖s(0) − s*(0)‖ + (1 − e^{−ct})/c · sup‖ds*/dt‖,

because the distance obeys D⁺d ≤ −cd + ‖ds*/dt‖. The speed of the equilibrium follows from that of the input: where
F(s*, q) = 0, ds*/dt = −(∂F/∂s)⁻¹(∂F/∂q)q̇ and ‖(∂F/∂s)⁻¹‖ ≤ 1/c. So ‖(∂F/∂q)q̇‖ ≤ v gives ‖ds*/dt‖ ≤ v/c and an error
of v/c² in the long run, which the scalar flow s' = −cs + vt attains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.records import require_norm
from contracting.display import Displayed
from contracting.errors import InputError, PreconditionError
from contracting.flows.base import BoundFlow
from contracting.flows.driven import DrivenFlow, Input
from contracting.integrators.implicit import PseudoTransient
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.simulation.evidence import Evidence, standing
from contracting.simulation.time_steps import Integrator
from contracting.simulation.times import elapsed_times, time_grid
from contracting.simulation.trajectories import Trajectory, simulate


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Tracking(Displayed):
    """How a flow followed its moving equilibrium.

    Attributes:
        times: (T,).
        trajectory: what the flow did.
        equilibria: s*(t) of the frozen input, in the coordinates of the flow, (T, batch, n).
        error: ‖s(t) − s*(t)‖ in the metric, (T, batch).
        bound: its bound, (T, batch).
        rate: c.
        evidence: what the rate rests on; None where the flow itself is proved to have it in the metric of its problem.
        speed: the sup‖ds*/dt‖ that the bound rests on, (batch,).
        speed_is_sampled: True where the speed was measured between the requested times, which may miss a faster moment;
            the bound is then an estimate. False where the caller gave it.
    """

    times: Tensor
    trajectory: Trajectory
    equilibria: Tensor
    error: Tensor
    bound: Tensor
    rate: float
    evidence: Evidence | None
    speed: Tensor
    speed_is_sampled: bool


def tracking_bound(times: Tensor, initial_error: Tensor, *, rate: float, speed: Tensor | float) -> Tensor:
    """e^{−ct}e₀ + (1 − e^{−ct})·speed/c with t from the first of ``times``: (T,), (batch,) -> (T, batch).

    Args:
        times: (T,) or (T, batch), none before the one above it.
        initial_error: e₀, (batch,).
        rate: c > 0, a contraction rate of the flow.
        speed: sup‖ds*/dt‖ in the metric of the rate, a number or (batch,); v/c for an input effect ‖(∂F/∂q)q̇‖ ≤ v.

    Raises:
        InputError: on shapes that do not fit, or a speed that is negative or not finite.
        PreconditionError: if the rate is not positive: no bound holds then.
    """
    _check_rate(rate)
    if checks.floating_tensor("initial_error", initial_error).ndim != 1:
        raise InputError(f"initial_error must have shape (batch,), got {tuple(initial_error.shape)}")
    if not isinstance(speed, Tensor):
        _check_speed(speed)
    elif speed.ndim > 1 or speed.numel() not in (1, len(initial_error)):
        raise InputError(
            f"speed must be a number or have one entry for each of {len(initial_error)} rows, got {tuple(speed.shape)}"
        )
    elif bool((checks.finite("speed", speed) < 0).any()):
        raise InputError(f"speed must not be negative, its smallest entry is {float(speed.detach().min()):.3g}")
    grid = time_grid(times, len(initial_error), forwards=True).to(initial_error.device)
    decay = torch.exp(-rate * elapsed_times(grid, initial_error))
    return decay * initial_error + (1 - decay) * speed / rate


def _check_rate(rate: float) -> None:
    if checks.number("rate", rate, high=math.inf, high_open=True) <= 0:
        raise PreconditionError(f"a tracking bound needs a positive contraction rate, got {rate:.3g}")


def _check_speed(speed: float) -> None:
    checks.number("speed", speed, low=0, high=math.inf, high_open=True)


def moving_equilibrium(flow: BoundFlow, signal: Input, times: Tensor, *, stop: Stop | None = None) -> Tensor:
    """The steady states s*(t) of the frozen inputs q(t): (T, batch, n), solved as one batch, without a graph.

    Raises:
        InputError: on times or a signal of a wrong kind or shape.
        SolveError: if an equilibrium was not found.
    """
    driven = DrivenFlow(flow, signal)
    own = isinstance(times, Tensor) and times.ndim == 2
    grid = time_grid(times, times.shape[1] if own else None)
    inputs = torch.stack([driven.at(moment[:, None] if own else moment[0]).problem.q for moment in grid])
    frozen = flow.with_input(inputs.flatten(0, 1))
    z = solve(frozen.problem.detach(), PseudoTransient(), stop=stop).z
    return frozen.init(z).reshape(inputs.shape)


def track(
    flow: BoundFlow,
    signal: Input,
    times: Tensor,
    *,
    start: Tensor | None = None,
    evidence: Evidence | None = None,
    speed: float | None = None,
    integrator: Integrator | None = None,
) -> Tracking:
    """Let a flow follow the equilibrium of a moving input, and compare its error with the bound.

    Args:
        flow: a flow of a problem.
        signal: q(t).
        times: (T,) or (T, batch), rising; dense enough to show the motion.
        start: (batch, n); None starts on the equilibrium of the first moment.
        evidence: a contraction rate with its norm: a ``Certificate``, a ``SampledRate``, or a ``Claim``. None takes the
            metric of the problem and the rate that the flow is proved to have there.
        speed: a known bound on ‖ds*/dt‖ in the metric; None measures it between the requested times.
        integrator: for the simulation.

    Raises:
        InputError: if the metric is of another size than the flow, or an argument is of a wrong kind or shape.
        PreconditionError: if the rate is not positive, or none is proved, or its metric is not proved to be a norm.
    """
    DrivenFlow(flow, signal)  # refuses what is no flow or no signal
    if evidence is None:
        metric, rate = flow.problem.metric, flow.contraction_rate
    else:
        standing(evidence)
        metric, rate = evidence.metric, evidence.rate
    if metric is None or rate is None:
        raise PreconditionError("no contraction rate is proved for this flow: pass a certificate as evidence")
    if metric.size != flow.problem.size:
        raise InputError(
            f"evidence must be about the {flow.problem.size} entries of the flow, its metric has {metric.size}"
        )
    _check_rate(rate)
    require_norm(metric)
    if speed is not None:
        _check_speed(speed)
    equilibria = moving_equilibrium(flow, signal, times)
    start = equilibria[0] if start is None else start
    trajectory = simulate(flow, start, times, signal=signal, integrator=integrator)
    error = metric.norm(trajectory.states - equilibria)
    if speed is None:
        steps = time_grid(trajectory.times, trajectory.states.shape[1]).diff(dim=0)
        chords = metric.norm(equilibria.diff(dim=0)) / steps.to(error)
        # a repeated time is no way to go
        fastest = chords.nan_to_num(0.0).amax(0).expand(error.shape[1])
    else:
        fastest = error.new_full((error.shape[1],), speed)
    return Tracking(
        times=trajectory.times,
        trajectory=trajectory,
        equilibria=equilibria,
        error=error,
        bound=tracking_bound(trajectory.times, error[0], rate=rate, speed=fastest),
        rate=rate,
        evidence=evidence,
        speed=fastest,
        speed_is_sampled=speed is None,
    )
