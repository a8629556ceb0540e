r"""Six known systems in the plane, each with a stable equilibrium, as fields f(t, s) of torch operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contracting import NeuralFlow

_STEPS, _SMALL_STEPS = 1500, 300  # Of Adam on the spiral: a few seconds, and a fraction of one for tests.


@dataclass(frozen=True, kw_only=True)
class KnownSystem:
    """A system of the atlas.

    Attributes:
        title: its name, for people.
        flow: the field.
        guess: near the equilibrium that attracts, for Newton's method.
        names: of the two coordinates.
        source: where it is from.
    """

    title: str
    flow: NeuralFlow
    guess: tuple[float, float]
    names: tuple[str, str]
    source: str


def van_der_pol(t: Tensor, s: Tensor) -> Tensor:
    """x' = −y, y' = x − (1 − x²)y: van der Pol's oscillator with time reversed, so that the origin attracts."""
    x, y = s.unbind(-1)
    return torch.stack([-y, x - (1 - x**2) * y], -1)


def fitzhugh_nagumo(t: Tensor, s: Tensor) -> Tensor:
    """v' = v − v³/3 − w, w' = 0.08(v + 0.7 − 0.8w): a nerve at rest, without a current."""
    v, w = s.unbind(-1)
    return torch.stack([v - v**3 / 3 - w, 0.08 * (v + 0.7 - 0.8 * w)], -1)


def toggle_switch(t: Tensor, s: Tensor) -> Tensor:
    """u' = 4/(1 + v³) − u, v' = 4/(1 + u³) − v: two genes that repress each other, in one of their two states."""
    u, v = s.unbind(-1)
    return torch.stack([4 / (1 + v**3) - u, 4 / (1 + u**3) - v], -1)


def lotka_volterra(t: Tensor, s: Tensor) -> Tensor:
    """x' = 1 − 0.5eˣ − 0.5eʸ, y' = −0.5 + eˣ − 0.5eʸ: logarithms of prey and predators that limit themselves, too."""
    prey, predators = s.exp().unbind(-1)
    return torch.stack([1 - 0.5 * prey - 0.5 * predators, -0.5 + prey - 0.5 * predators], -1)


def kuramoto(t: Tensor, s: Tensor) -> Tensor:
    """Differences φ = θ₁ − θ₂, ψ = θ₂ − θ₃ of three oscillators with coupling 1 and frequencies 0.3, 0, −0.1."""
    a, b = s.unbind(-1)
    first, second, both = a.sin(), b.sin(), (a + b).sin()
    return torch.stack([0.3 - (2 * first + both - second) / 3, 0.1 - (2 * second + both - first) / 3], -1)


class TrainedSpiral(nn.Module):
    """s' = an MLP of 16 neurons, trained on the spiral s' = [[−0.6, 2], [−2, −0.6]]s + 0.4·s³/(1 + s²) around 0."""

    def __init__(self, *, steps: int, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()
            self._train(steps)

    def _train(self, steps: int) -> None:
        matrix = torch.tensor([[-0.6, 2.0], [-2.0, -0.6]], dtype=torch.float64)
        states = 3 * torch.rand(1024, 2, dtype=torch.float64) - 1.5
        velocities = states @ matrix.mT + 0.4 * states**3 / (1 + states**2)
        optimiser: Any = torch.optim.Adam(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            optimiser.zero_grad()
            loss = (self.layers(states) - velocities).square().mean()
            loss.backward()
            optimiser.step()
            schedule.step()
        self.requires_grad_(False)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        """The velocity: (batch, 2) -> (batch, 2)."""
        velocity: Tensor = self.layers(s)
        return velocity


def known_systems(*, small: bool = False) -> dict[str, Callable[[], KnownSystem]]:
    """The six systems by name; a spiral is trained when it is asked for."""

    def system(
        title: str, field: Callable[[Tensor, Tensor], Tensor], guess: tuple[float, float], names: tuple[str, str],
        source: str,
    ) -> Callable[[], KnownSystem]:  # fmt: skip
        return lambda: KnownSystem(title=title, flow=NeuralFlow(field), guess=guess, names=names, source=source)

    def spiral() -> KnownSystem:
        return KnownSystem(
            title="Trained spiral",
            flow=NeuralFlow(TrainedSpiral(steps=_SMALL_STEPS if small else _STEPS)),
            guess=(0.0, 0.0),
            names=("first state", "second state"),
            source="Chen et al., Neural ordinary differential equations, 2018, section 5.1",
        )

    return {
        "van-der-pol": system(
            "Van der Pol, reversed time", van_der_pol, (0.0, 0.0), ("position", "velocity"),
            "van der Pol, On relaxation-oscillations, 1926",
        ),
        "fitzhugh-nagumo": system(
            "FitzHugh–Nagumo at rest", fitzhugh_nagumo, (-1.2, -0.6), ("voltage v", "recovery w"),
            "FitzHugh, Impulses and physiological states in theoretical models of nerve membrane, 1961",
        ),
        "toggle-switch": system(
            "Toggle switch", toggle_switch, (4.0, 0.06), ("repressor u", "repressor v"),
            "Gardner, Cantor, Collins, Construction of a genetic toggle switch in Escherichia coli, 2000",
        ),
        "lotka-volterra": system(
            "Lotka–Volterra, logarithms", lotka_volterra, (0.0, 0.0), ("log prey", "log predators"),
            "Volterra, Variazioni e fluttuazioni del numero d'individui, 1926, with self-limitation",
        ),
        "kuramoto": system(
            "Kuramoto, three oscillators", kuramoto, (0.3, 0.1), ("θ₁ − θ₂ (rad)", "θ₂ − θ₃ (rad)"),
            "Kuramoto, Chemical oscillations, waves, and turbulence, 1984",
        ),
        "trained-spiral": spiral,
    }  # fmt: skip
