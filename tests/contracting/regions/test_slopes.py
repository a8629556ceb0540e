"""Networks over a region: slopes that hold, and rates beyond those of all slopes that no pair contradicts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from contracting import Ball, Box, FullP, NeuralFlow, WeightedLinf, certify, certify_region, lure_of, simulate
from contracting.lure.flow import LureFlow
from contracting.regions.field import FieldOnBoxes
from contracting.regions.slopes import certify_slopes_over, slopes_over

F64 = torch.float64


class Field(nn.Module):
    def __init__(self, n: int, m: int, *, gain: float = 3.0):
        super().__init__()
        torch.manual_seed(n)
        layers = nn.Linear(n, m), nn.Tanh(), nn.Linear(m, m), nn.Softplus(), nn.Linear(m, n)
        self.layers = nn.Sequential(*layers).double()
        self.gain = gain

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        return self.gain * self.layers(s) - 1.2 * s


def read(flow: NeuralFlow, n: int) -> LureFlow:
    return lure_of(flow, state=torch.zeros(n, dtype=F64))


@pytest.mark.parametrize("kind", ["box", "ball", "ball of ℓ∞"])
def test_every_secant_of_the_region_has_a_slope_that_is_allowed(kind: str) -> None:
    n = 4
    flow = NeuralFlow(Field(n, 6))
    P = torch.eye(n, dtype=F64) + 0.3
    region = {
        "box": Box(-0.7 * torch.ones(n, dtype=F64), 0.4 * torch.ones(n, dtype=F64)),
        "ball": Ball(0.1 * torch.ones(n, dtype=F64), 0.6, FullP(P)),
        "ball of ℓ∞": Ball(0.1 * torch.ones(n, dtype=F64), 0.6, WeightedLinf(torch.ones(n, dtype=F64))),
    }[kind]
    lure = read(flow, n)
    low, high = slopes_over(lure, FieldOnBoxes(flow, n), region)
    torch.manual_seed(1)
    if isinstance(region, Box):
        points = region.lower + (region.upper - region.lower) * torch.rand(2000, n, dtype=F64)
    else:
        apart = torch.randn(2000, n, dtype=F64)
        points = region.centre + region.radius * apart / region.metric.norm(apart)[:, None]
    v = lure.preactivations(points).detach()
    secants = (lure.activation(v[:1000]) - lure.activation(v[1000:])) / (v[:1000] - v[1000:])
    assert bool((secants >= low - 1e-9).all()) and bool((secants <= high + 1e-9).all())
    # negative control: the slopes of a fifth of the region are too few for all of it
    if isinstance(region, Ball):
        narrow, wide = slopes_over(lure, FieldOnBoxes(flow, n), Ball(region.centre, 0.2 * region.radius, region.metric))
        assert bool((secants < narrow).any()) or bool((secants > wide).any())
        assert bool((narrow >= low).all()) and bool((wide <= high).all())


def test_a_region_proves_what_all_slopes_do_not() -> None:
    n = 8
    flow = NeuralFlow(Field(n, 10, gain=4.0))
    everywhere = certify(read(flow, n).system())
    region = Box(-0.2 * torch.ones(n, dtype=F64), 0.2 * torch.ones(n, dtype=F64))
    found = certify_region(flow, region)
    assert found.rate > max(0.0, everywhere.rate) and "slopes" in found.method
    torch.manual_seed(0)
    points = 0.4 * torch.rand(500, n, dtype=F64) - 0.2
    measures = found.metric.matrix_measure(flow.jacobian(points).detach())
    assert float(measures.max()) <= -found.rate and found.sampled >= found.rate
    times = torch.linspace(0, 0.1, 3, dtype=F64)
    states = simulate(flow, 0.5 * points[:40], times).states.detach()
    gaps = found.metric.norm(states[:, ::2] - states[:, 1::2])
    assert bool((gaps <= gaps[0] * torch.exp(-found.rate * times)[:, None] * (1 + 1e-6)).all())


def test_slopes_of_a_point_give_the_rate_of_its_linearisation() -> None:
    n = 5
    flow = NeuralFlow(Field(n, 6))
    point = 0.3 * torch.ones(n, dtype=F64)
    tiny = Ball(point, 1e-7, FullP(torch.eye(n, dtype=F64)))
    found = certify_slopes_over(flow, FieldOnBoxes(flow, n), tiny)
    abscissa = float(torch.linalg.eigvals(flow.jacobian(point[None]).detach()[0]).real.max())
    assert -abscissa - 1e-2 <= found.rate <= -abscissa + 1e-5
