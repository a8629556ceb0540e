"""A damped pendulum, samples of it, two models of one size, and how well each follows it for twice as long.

The field of a pendulum of length ℓ with friction β contracts where its swings are small: with slopes of sin between k
and 1 (in units of g/ℓ) in some quadratic norm iff β > √(g/ℓ)·(1 − √k), here up to 64°. The samples stay below that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contracting import (
    AdaptiveStep,
    CertificateError,
    ContractingODE,
    FixedStep,
    NeuralFlow,
    VectorField,
    certify,
    checks,
    simulate,
)
from contracting.integrators.explicit import EULER, RK4_CLASSIC
from contracting.simulation.time_steps import Integrator
from contracting.types import Time
from equilibrium.experiments.runner import Task, Workspace, run_tasks

GRAVITY, LENGTH, FRICTION = 9.81, 0.5, 1.5
"""m/s², m, and 1/s: θ'' = −(g/ℓ)·sin θ − βθ'."""
MODELS = ("contracting", "unconstrained")
EULER_NAME, RK4_NAME, PAIR_NAME = "Euler", "RK4", "Dormand–Prince"
INTEGRATORS = {EULER_NAME: "euler", RK4_NAME: "rk4", PAIR_NAME: "dormand-prince"}
"""Integrators, and what their folders are called."""
_RATE = 0.05  # 1/s, that the contracting model is to have; the linearised pendulum has β/2 = 0.75.
# Largest angle (rad) and speed (rad/s) at the start: together they swing up to 0.9 rad, which is 52°.
_ANGLE, _SPEED = 0.8, 2.0
# rad or rad/s, at which a model in training is taken to have blown up: the line search is then told a large loss.
_LOST = 1e3
# Attempted steps for one swing in training, five times as many as are needed: a line search also tries stiff fields, in
# which an adaptive integrator would take thousands.
_MOST_STEPS = 400
# Shares of the samples, from the first on, and of the iterations that are spent on them. Over the whole window a field
# that has not yet found the frequency does best to rest early, and the pair follows it into stiffness up to the limit
# of its steps, where no line search gets on: without this, weights of seed 0 that were changed by a millionth stayed at
# an error of 8.3 (in units of the noise) and 4187 evaluations; with it they came to 1.28.
_GROWING = ((0.25, 0.15), (0.5, 0.15), (1.0, 0.7))


@dataclass(frozen=True, kw_only=True)
class PendulumSettings:
    """What is trained on what.

    Attributes:
        seed: of the samples and of the weights.
        trajectories: number of swings that are seen in training; as many others are for the test.
        samples: number of times at which the swings are seen, irregular.
        window: seconds that are seen in training.
        noise: standard deviation of the error of every sample, in rad and rad/s.
        neurons: of both models.
        iterations: of L-BFGS, the last 70 % of them on all samples.
        euler: seconds of a step of Euler's method in training.
        rk4: the same of the classical Runge–Kutta method.
        rtol: relative tolerance of the Dormand–Prince pair in training.
        certified: whether the best provable rate is asked for, which takes longer than a small study does.
        refinements: how often the integrators are refined by two in the test, and coarsened by two.
    """

    seed: int = 0
    trajectories: int = 16
    samples: int = 30
    window: float = 4.0
    noise: float = 0.05
    neurons: int = 16
    iterations: int = 150
    euler: float = 0.02
    rk4: float = 0.1
    rtol: float = 1e-3
    certified: bool = True
    refinements: int = 3

    def __post_init__(self) -> None:
        checks.seed("seed", self.seed)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """One model, trained with one integrator, and tested with finer and coarser ones of the same kind.

    Attributes:
        model: which.
        integrator: which.
        parameters: number of numbers that were trained.
        train: root mean square error at the samples, in units of the noise: 1 is all that can be asked for.
        within: root mean square error of noiseless test swings, s ≤ window, in rad and rad/s.
        beyond: the same for window < s ≤ 2·window.
        evaluations: of the field for a whole test swing, as in training.
        rate: the best contraction rate that is proved everywhere, per second; negative where trajectories may part at
            that rate, None where nothing is proved.
        exponent: largest real part of an eigenvalue of the field at rest, per second; that of the pendulum is −0.75.
        curve: (evaluations, root mean square error over the whole test) for finer and finer integrators.
    """

    model: str
    integrator: str
    parameters: int
    train: float
    within: float
    beyond: float
    evaluations: int
    rate: float | None
    exponent: float
    curve: list[tuple[int, float]]


class Counted(VectorField):
    """A field that counts its evaluations."""

    def __init__(self, field: VectorField):
        self.field, self.count = field, 0

    def __call__(self, t: Time, state: Tensor) -> Tensor:
        self.count += 1
        return self.field(t, state)


def pendulum(s: Tensor) -> Tensor:
    """The field on (θ, θ'): (batch, 2) -> (batch, 2)."""
    angle, speed = s.unbind(-1)
    return torch.stack([speed, -GRAVITY / LENGTH * torch.sin(angle) - FRICTION * speed], -1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Swings:
    """Samples of pendulums: times (T,), noisy and true states (T, batch, 2); the first time is 0."""

    times: Tensor
    seen: Tensor
    true: Tensor


def swings(settings: PendulumSettings, *, part: int, end: float, regular: bool) -> Swings:
    """Swings from random starts, others for another part, sampled at irregular times or at regular ones."""
    random = torch.Generator().manual_seed((settings.seed + 1 + part) % 2**63)
    rows, count = settings.trajectories, settings.samples
    start = (2 * torch.rand(rows, 2, generator=random, dtype=torch.float64) - 1) * torch.tensor([_ANGLE, _SPEED])
    moments = end * torch.rand(count, generator=random, dtype=torch.float64).sort().values
    if regular:
        moments = torch.linspace(0, end, count + 1, dtype=torch.float64)[1:]
    times = torch.cat([torch.zeros(1, dtype=torch.float64), moments])
    true = simulate(NeuralFlow(pendulum), start, times).states
    noise = settings.noise * torch.randn(true.shape, generator=random, dtype=torch.float64)
    return Swings(times=times, seen=true + noise, true=true)


def error_of_the_truth(settings: PendulumSettings) -> float:
    """Error of the pendulum itself at the training samples, from the same noisy starts, in units of the noise."""
    data = swings(settings, part=0, end=settings.window, regular=False)
    states = simulate(NeuralFlow(pendulum), data.seen[0], data.times).states
    return float((states[1:] - data.seen[1:]).square().mean().sqrt()) / settings.noise


class Free(nn.Module):
    """s' = As + B(tanh(Cs + b) − tanh(b)): the contracting model of the same matrices, without its constraint."""

    def __init__(self, model: ContractingODE):
        super().__init__()
        flow = model.flow()
        assert flow.q is not None
        self.A, self.B, self.C, self.bias = (
            nn.Parameter(value.detach().contiguous().clone()) for value in (flow.A, flow.B, flow.C, flow.q)
        )

    def forward(self, s: Tensor) -> Tensor:
        """The field: (batch, 2) -> (batch, 2)."""
        change = torch.tanh(s @ self.C.mT + self.bias) - torch.tanh(self.bias)
        value: Tensor = s @ self.A.mT + change @ self.B.mT
        return value


def model_named(name: str, settings: PendulumSettings) -> nn.Module:
    """A fresh model; both have the same matrices, and so begin as the same field."""
    torch.manual_seed(settings.seed)
    contracting = ContractingODE(
        0, 2, settings.neurons, None, contraction_rate=_RATE, feedback=False, rest=torch.zeros(2, dtype=torch.float64),
        dtype=torch.float64,
    )  # fmt: skip
    return contracting if name == MODELS[0] else Free(contracting)


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def field_of(model: nn.Module) -> VectorField:
    """The field of a model, with its present weights."""
    return model.flow() if isinstance(model, ContractingODE) else NeuralFlow(model)


def integrator_named(name: str, settings: PendulumSettings, finer: float = 1.0) -> Integrator:
    """An integrator, so many times finer than in training: its steps, or for the pair what they would be."""
    if name == PAIR_NAME:
        rtol = min(0.5, settings.rtol * finer**-5)
        return AdaptiveStep(rtol=rtol, atol=rtol)
    step, tableau = (settings.euler, EULER) if name == EULER_NAME else (settings.rk4, RK4_CLASSIC)
    return FixedStep(step=step / finer, tableau=tableau)


def train(model: nn.Module, integrator: Integrator, data: Swings, settings: PendulumSettings) -> float:
    """Fit the first samples, then more, then all; the root mean square error of those, in units of the noise."""
    for share, effort in _GROWING:
        last = 1 + math.ceil(share * (len(data.times) - 1))
        error = _descend(
            model, integrator, data.times[:last], data.seen[:last], settings.noise,
            iterations=math.ceil(effort * settings.iterations),
        )  # fmt: skip
    return error


def _descend(
    model: nn.Module, integrator: Integrator, times: Tensor, seen: Tensor, noise: float, *, iterations: int
) -> float:
    """Fit these samples by L-BFGS; their root mean square error, in units of the noise."""
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=iterations, history_size=20, line_search_fn="strong_wolfe",
        tolerance_grad=0, tolerance_change=0,
    )  # fmt: skip
    least = math.inf

    def loss() -> Tensor:
        nonlocal least
        optimiser.zero_grad()
        path = simulate(field_of(model), seen[0], times, integrator=integrator, throw=False)
        states = path.states.nan_to_num(_LOST).clamp(-_LOST, _LOST)
        square = (states[1:] - seen[1:]).square().mean() / noise**2
        square.backward()  # type: ignore[no-untyped-call]
        least = min(least, float(square.detach()))
        return square

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return math.sqrt(least)


@torch.no_grad()
def tested(model: nn.Module, integrator: Integrator, data: Swings, window: float) -> tuple[float, float, float, int]:
    """Root mean square errors within the window, beyond and over both, from true starts; and evaluations."""
    field = Counted(field_of(model))
    states = simulate(field, data.true[0], data.times, integrator=integrator, throw=False).states
    square = (states - data.true).square().nan_to_num(math.inf)[1:]
    early = data.times[1:] <= window * (1 + 1e-9)
    within, beyond, whole = (float(part.mean().sqrt()) for part in (square[early], square[~early], square))
    return within, beyond, whole, field.count


def _certified(field: VectorField) -> float | None:
    """The rate at which the field contracts everywhere, as far as it can be proved; None where nothing is."""
    try:
        return certify(field).rate
    except CertificateError:
        return None


def fit(settings: PendulumSettings, model_name: str, integrator_name: str) -> Fit:
    """Train one model with one integrator and test it."""
    model = model_named(model_name, settings)
    data = swings(settings, part=0, end=settings.window, regular=False)
    integrator = integrator_named(integrator_name, settings)
    if isinstance(integrator, AdaptiveStep):
        integrator = replace(integrator, max_steps=_MOST_STEPS)
    trained = train(model, integrator, data, settings)
    test = swings(settings, part=1, end=2 * settings.window, regular=True)
    within, beyond, _, evaluations = tested(
        model, integrator_named(integrator_name, settings), test, settings.window
    )
    finer = [2.0**power for power in range(-settings.refinements, settings.refinements + 1)]
    results = [tested(model, integrator_named(integrator_name, settings, f), test, settings.window) for f in finer]
    at_rest = field_of(model).jacobian(torch.zeros(1, 2, dtype=torch.float64)).detach()
    return Fit(
        model=model_name,
        integrator=integrator_name,
        parameters=parameters(model),
        train=trained,
        within=within,
        beyond=beyond,
        evaluations=evaluations,
        rate=_certified(field_of(model)) if settings.certified else None,
        exponent=float(torch.linalg.eigvals(at_rest).real.max()),
        curve=[(count, whole) for _, _, whole, count in results],
    )


@dataclass(frozen=True, kw_only=True)
class OneFit:
    """What one task of the study is about."""

    model: str
    integrator: str
    study: PendulumSettings


def run(settings: OneFit, workspace: Workspace) -> dict[str, Any]:
    """The fit as a task of the runner, trained once."""
    found: dict[str, Any] = workspace.once(
        "fit", lambda: asdict(fit(settings.study, settings.model, settings.integrator))
    )
    return found


def fits(
    settings: PendulumSettings, folder: Path, integrators: Sequence[str], *, jobs: int = 1, progress: bool = False
) -> tuple[list[Fit], dict[str, dict[str, float]]]:
    """All models with these integrators, continued where an earlier run ended; and the seconds of each task."""
    tasks = [
        Task(name=f"{model}-{short}", settings=OneFit(model=model, integrator=integrator, study=settings), run=run)
        for model in MODELS
        for integrator, short in INTEGRATORS.items()
        if short in integrators
    ]
    outcome = run_tasks(tasks, folder, jobs=jobs, progress=progress)
    found = [Fit(**outcome.results[task.name]) for task in tasks]
    return [replace(fit, curve=[(int(n), float(error)) for n, error in fit.curve]) for fit in found], outcome.seconds
