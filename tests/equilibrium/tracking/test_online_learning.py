"""Learning from a stream: each solve, forward and backward, starts at the last one, and the gradients are the same."""

from __future__ import annotations

import torch

from contracting import Implicit, Stop, WarmAdjoint
from equilibrium import LBEN, Tracker
from tests.equilibrium.tracking.instances import F64, layer_of, walk

TIGHT = Stop(rtol=1e-10, atol=0.0, check_every=1)


def ready(backward: Implicit) -> LBEN:
    layer = layer_of(lipschitz=1.0).requires_grad_()
    layer.stop, layer.backward = TIGHT, backward
    return layer


def test_a_warm_adjoint_gives_the_same_gradient_in_fewer_steps() -> None:
    warm, cold = ready(Implicit(stop=TIGHT, start=WarmAdjoint())), ready(Implicit(stop=TIGHT))
    tracker, target = Tracker(warm, tolerance=1e-3), torch.ones(2, 3, dtype=F64)
    steps: dict[str, list[int]] = {"warm": [], "cold": []}
    for x in walk(8, 2, stride=1e-6):
        gradients = []
        for name, layer, z0 in (("warm", warm, tracker(x).equilibrium), ("cold", cold, None)):
            loss = (layer(x, z0=z0) - target).square().sum()
            gradients.append(torch.autograd.grad(loss, list(layer.parameters())))
            assert layer.last_solves.backward is not None
            steps[name].append(int(layer.last_solves.backward.steps.max()))
        for ours, theirs in zip(*gradients, strict=True):
            assert (ours - theirs).abs().max() <= 1e-8 * (1 + theirs.abs().max())
    assert max(steps["warm"][1:]) < min(steps["cold"][1:]) and steps["warm"][0] == steps["cold"][0]


def test_rows_that_do_not_fit_start_from_zero_and_second_derivatives_are_right() -> None:
    memory = WarmAdjoint()
    layer, cold = ready(Implicit(stop=TIGHT, start=memory)), ready(Implicit(stop=TIGHT))
    for batch in (3, 2, 2):
        x = next(walk(1, batch, stride=1.0)).requires_grad_()
        found = []
        for each in (layer, cold):
            (slope,) = torch.autograd.grad(each(x).sin().sum(), x, create_graph=True)
            found.append((slope, torch.autograd.grad(slope.square().sum(), x)[0]))
        for ours, theirs in zip(*found, strict=True):
            assert (ours - theirs).abs().max() <= 1e-7
        assert memory.w is not None and memory.w.shape == (batch, 12) and not memory.w.requires_grad


def test_a_wrong_start_costs_steps_and_nothing_else() -> None:
    memory = WarmAdjoint()
    layer, x = ready(Implicit(stop=TIGHT, start=memory)), next(walk(1, 2, stride=1.0))
    wanted = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    memory.w = 100 * torch.randn(2, 12, dtype=F64, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(torch.autograd.grad(layer(x).sum(), list(layer.parameters())), wanted, strict=True):
        assert (ours - theirs).abs().max() <= 1e-8 * (1 + theirs.abs().max())
