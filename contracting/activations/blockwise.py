"""An activation that differs between blocks of neurons, such as between the layers of a network."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.base import Activation
from contracting.errors import InputError
from contracting.types import Slopes, Step


@dataclass(frozen=True, kw_only=True)
class Blockwise(Activation):
    r"""σ₁ for the first m₁ neurons, σ₂ for the m₂ that follow, …: prox of the sum of their potentials.

    Args:
        parts: σ₁, σ₂, …
        sizes: m₁, m₂, …

    Raises:
        InputError: if a part is no activation, or there is not one size for each.
    """

    parts: tuple[Activation, ...]
    sizes: tuple[int, ...]
    piecewise_linear: ClassVar[bool] = True  # overridden per instance

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "sizes", tuple(checks.whole_number("sizes", size) for size in self.sizes))
        if not self.parts or len(self.parts) != len(self.sizes):
            raise InputError(f"sizes must hold one size for each of {len(self.parts)} parts, got {self.sizes}")
        for part in self.parts:
            if not isinstance(part, Activation):
                raise InputError(f"parts must be activations such as ReLU(), got {part!r}")
        for name in ("piecewise_linear", "homogeneous"):
            object.__setattr__(self, name, all(getattr(part, name) for part in self.parts))

    @property
    def slopes(self) -> Slopes:
        lows, highs = zip(*(part.slopes for part in self.parts), strict=True)
        return Slopes(min(lows), max(highs))

    def slope_intervals(self, size: int) -> tuple[Tensor, Tensor]:
        each = (part.slope_intervals(count) for part, count in zip(self.parts, self.sizes, strict=True))
        lows, highs = zip(*each, strict=True)
        return torch.cat(lows), torch.cat(highs)

    def neurons(self, start: int, stop: int) -> Activation:
        chosen = [
            (part.neurons(max(start - first, 0), min(stop, last) - first), min(stop, last) - max(start, first))
            for part, first, last in self._blocks()
            if first < stop and last > start
        ]
        return joined(chosen)

    def verify(self) -> None:
        """Nothing: each part is verified, and a sum of potentials of different neurons has their proxes as its own."""

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors())

    def with_tensors(self, tensors: Sequence[Tensor]) -> Blockwise:
        rest = iter(tensors)
        parts = [part.with_tensors(list(itertools.islice(rest, len(part.tensors())))) for part in self.parts]
        return Blockwise(parts=tuple(parts), sizes=self.sizes)

    def rows(self, index: Tensor | slice) -> Blockwise:
        return Blockwise(parts=tuple(part.rows(index) for part in self.parts), sizes=self.sizes)

    def potential(self, z: Tensor) -> Tensor:
        return torch.cat([part.potential(z[..., a:b]) for part, a, b in self._split(z)], -1)

    def value(self, v: Tensor) -> Tensor:
        return torch.cat([part.value(v[..., a:b]) for part, a, b in self._split(v)], -1)

    def slope(self, v: Tensor) -> Tensor:
        return torch.cat([part.slope(v[..., a:b]) for part, a, b in self._split(v)], -1)

    def prox_value(self, x: Tensor, step: Step) -> Tensor:
        return torch.cat([part.prox_value(x[..., a:b], _own(step, a, b)) for part, a, b in self._split(x)], -1)

    def prox_slope(self, x: Tensor, step: Step) -> Tensor:
        return torch.cat([part.prox_slope(x[..., a:b], _own(step, a, b)) for part, a, b in self._split(x)], -1)

    def _blocks(self) -> Iterator[tuple[Activation, int, int]]:
        """Each part with its first neuron and the one after its last."""
        ends = list(itertools.accumulate(self.sizes))
        return zip(self.parts, [0, *ends[:-1]], ends, strict=True)

    def _split(self, values: Tensor) -> Iterator[tuple[Activation, int, int]]:
        checks.last_size("v", values, sum(self.sizes))
        return self._blocks()


def joined(parts: Sequence[tuple[Activation, int]]) -> Activation:
    """One activation for all, from (σ, number of neurons) of consecutive blocks; neighbours that are equal are one.

    Raises:
        InputError: if there is no block.
    """
    merged: list[tuple[Activation, int]] = []
    for part, count in parts:
        if merged and merged[-1][0] == part and not part.tensors():
            count += merged.pop()[1]
        merged.append((part, count))
    if len(merged) == 1:
        return merged[0][0]
    return Blockwise(parts=tuple(part for part, _ in merged), sizes=tuple(count for _, count in merged))


def _own(step: Step, start: int, stop: int) -> Step:
    """The steps of some neurons, where each has its own."""
    return step[..., start:stop] if isinstance(step, Tensor) and step.ndim and step.shape[-1] > 1 else step
