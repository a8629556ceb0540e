"""What the controls of the page say: a weight, its skewness, an input, an activation and a flow; from and to a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracting import (
    ADMISSIBLE,
    Activation,
    BoundFlow,
    Dense,
    EquilibriumProblem,
    FiringRate,
    Flow,
    ForwardBackwardFlow,
    Hopfield,
    InputError,
    PeacemanRachfordFlow,
    activation_named,
    checks,
    find_metric,
)
from contracting.display import Displayed
from equilibrium.checkpoints import load_reference
from equilibrium.files import write_json
from equilibrium.layers import EquilibriumLayer

ACTIVATIONS = tuple(type(activation).__name__ for activation in ADMISSIBLE)
FLOWS: Mapping[str, Callable[[float], Flow]] = {
    "firing rate": lambda step: FiringRate(),
    "Hopfield": lambda step: Hopfield(),
    "forward–backward": lambda step: ForwardBackwardFlow(step=step),
    "Peaceman–Rachford": lambda step: PeacemanRachfordFlow(step=step),
}
"""The flows by name; the last two have a step α."""

TYPED = (2, 5)  # The least and the largest number of units of a weight that is typed or drawn.
_LOADED = 100  # The largest number of units of a checkpoint: up to here the page answers in seconds.


@dataclass(frozen=True, kw_only=True, repr=False)
class Setting(Displayed):
    """One problem z = σ(Wz + q) and one flow that leads to its equilibrium, in plain numbers.

    Attributes:
        weight: W as it was typed, n rows of n numbers.
        q: the input, n numbers.
        activation: name of σ, one of ``ACTIVATIONS``.
        flow: one of ``FLOWS``.
        step: α > 0 of a flow that has one.
        skewness: s; the weight that is explored is ½(W + Wᵀ) + s·½(W − Wᵀ).

    Raises:
        InputError: if something does not fit or is out of range.
    """

    weight: tuple[tuple[float, ...], ...]
    q: tuple[float, ...]
    activation: str = "Tanh"
    flow: str = "firing rate"
    step: float = 0.5
    skewness: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.weight)
        if not TYPED[0] <= n <= _LOADED or any(len(row) != n for row in self.weight):
            raise InputError(f"weight must have n rows of n numbers, 2 ≤ n ≤ {_LOADED}, got {n} rows")
        if len(self.q) != n:
            raise InputError(f"q must have {n} numbers, one for each unit, got {len(self.q)}")
        for name, values in (("weight", sum(self.weight, ())), ("q", self.q)):
            for value in values:
                checks.number(name, value, low=-math.inf, low_open=True, high=math.inf, high_open=True)
        checks.positive_number("step", self.step)
        checks.number("skewness", self.skewness, low=-100, high=100)
        for name, known in (("activation", ACTIVATIONS), ("flow", FLOWS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    @property
    def size(self) -> int:
        """Number of units n."""
        return len(self.weight)

    @property
    def W(self) -> Tensor:  # noqa: N802  # as in the formulas
        """½(W + Wᵀ) + s·½(W − Wᵀ), (n, n), float64."""
        typed = torch.tensor(self.weight, dtype=torch.float64)
        return (typed + typed.mT) / 2 + self.skewness * (typed - typed.mT) / 2

    @property
    def sigma(self) -> Activation:
        """The activation."""
        return activation_named(self.activation)

    def problem(self) -> EquilibriumProblem:
        """z = σ(Wz + q) with one row, in a metric with Condition 1 if one is found."""
        W, q = self.W, torch.tensor([self.q], dtype=torch.float64)
        return EquilibriumProblem(linear=Dense(W), q=q, activation=self.sigma, metric=find_metric(W).metric)

    def bound(self, problem: EquilibriumProblem) -> BoundFlow:
        """The flow on the problem."""
        return FLOWS[self.flow](self.step).bind(problem)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the setting as JSON, which ``read`` reads."""
        return write_json(path, asdict(self))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Setting:
        """A setting that was saved, or one made from a checkpoint of at most 100 units, its input that of x = 0.

        Raises:
            InputError: if the file is neither.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{str(path)!r} cannot be read ({error.strerror}); name a file that exists") from error
        if not content.lstrip().startswith(b"{"):
            return cls.of(load_reference(path))
        try:
            return cls.from_plain(json.loads(content))
        except ValueError as error:
            raise InputError(f"{str(path)!r} is no setting of the explorer: {error}") from error

    @classmethod
    def from_plain(cls, values: Any) -> Setting:
        """The setting that JSON says.

        Raises:
            InputError: if it says something else.
        """
        known = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or not {"weight", "q"} <= set(values) <= known:
            raise InputError(f"a setting has weight and q, and may have {', '.join(sorted(known - {'weight', 'q'}))}")
        try:
            rows = tuple(tuple(map(float, row)) for row in values["weight"])
            return cls(**(values | {"weight": rows, "q": tuple(map(float, values["q"]))}))
        except (TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"weight and q must be numbers: {error}") from error

    @classmethod
    def of(cls, layer: EquilibriumLayer) -> Setting:
        """The weights of a layer, with the input that it sees at x = 0.

        Raises:
            InputError: if it has too many units, or an activation without a name.
        """
        name = type(layer.activation).__name__
        if name not in ACTIVATIONS or activation_named(name) != layer.activation:
            raise InputError(f"the explorer knows activations by name, and {layer.activation!r} is none of these")
        if layer.hidden_features > _LOADED:
            raise InputError(f"the explorer takes at most {_LOADED} units, this layer has {layer.hidden_features}")
        with torch.no_grad():
            weights = layer.weights().dense()
            W, q = weights.state.to_dense().double().tolist(), weights.bias.double().tolist()
        return cls(weight=tuple(map(tuple, W)), q=tuple(q), activation=name)


def drawn(units: int, seed: int, *, size: float = 1.4) -> Setting:
    """A random weight and input: normal entries of standard deviation ``size``/√n, and of 1/2."""
    checks.whole_number("units", units, low=TYPED[0])
    generator = torch.Generator().manual_seed(checks.seed("seed", seed))
    W = size / units**0.5 * torch.randn(units, units, generator=generator, dtype=torch.float64)
    q = torch.randn(units, generator=generator, dtype=torch.float64) / 2
    rows = tuple(tuple(round(value, 3) for value in row) for row in W.tolist())
    return Setting(weight=rows, q=tuple(round(value, 3) for value in q.tolist()))


EXAMPLES: Mapping[str, Setting] = {
    "a spiral": Setting(weight=((-0.3, 1.2), (-1.5, 0.1)), q=(0.3, 0.5)),
    "self-adjoint, so that FISTA applies": Setting(weight=((0.35, 0.4), (0.4, 0.55)), q=(0.5, -0.6), activation="ReLU"),
    "Condition 1 holds, no metric contracts": Setting(weight=((0.0, 3.0), (-3.0, 0.0)), q=(0.2, 0.1)),
    "three units in a ring": Setting(weight=((0.0, 0.0, -1.1), (1.1, 0.0, 0.0), (0.0, 1.1, 0.0)), q=(0.5, 0.2, -0.1)),
    "five random units": drawn(5, 0),
}
"""Settings to start from, by what they show."""


def parsed(text: str) -> tuple[tuple[float, ...], ...]:
    """A matrix as one types it: rows end at a line break or a semicolon, numbers at a space or a comma.

    Raises:
        InputError: if it is no square matrix of 2 to 5 rows.
    """
    lines = [line.replace(",", " ").replace("−", "-").split() for line in text.replace(";", "\n").splitlines()]
    try:
        rows = tuple(tuple(float(word) for word in line) for line in lines if line)
    except ValueError as error:
        raise InputError(f"W must be numbers, rows separated by line breaks: {error}") from None
    if not TYPED[0] <= len(rows) <= TYPED[1] or any(len(row) != len(rows) for row in rows):
        lengths = [len(row) for row in rows]
        raise InputError(f"W must be square with {TYPED[0]} to {TYPED[1]} rows, got rows of {lengths} numbers")
    return rows


def written(weight: tuple[tuple[float, ...], ...]) -> str:
    """The matrix as ``parsed`` reads it."""
    return "\n".join(" ".join(f"{value:g}" for value in row) for row in weight)
