"""The margin by the norms of the layers: never below what inputs reach, exact of one layer, and refused elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from contracting import InputError
from equilibrium import LBEN, train
from equilibrium.training.data import digits, subset
from equilibrium.training.spectral import SpectralMargin, layerwise_constants

F64 = torch.float64


def perceptron(seed: int, *sizes: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(inputs, outputs, dtype=F64), nn.Tanh()]
        return nn.Sequential(*layers[:-1])


def test_no_input_of_the_ball_exceeds_the_leads_and_eight_tenths_of_them_are_exceeded():
    nearest = 0.0
    for seed in range(10):
        model, generator = perceptron(seed, 4, 6, 3), torch.Generator().manual_seed(seed)
        x = 0.1 * torch.randn(5, 4, dtype=F64, generator=generator)
        labels = torch.arange(5) % 3
        leads = SpectralMargin(radius=0.5).leads(model, x, labels, model(x)).detach()
        steps = torch.randn(2000, 5, 4, dtype=F64, generator=generator)
        y = model((x + 0.5 * steps / steps.norm(dim=-1, keepdim=True)).flatten(0, 1)).unflatten(0, (2000, 5)).detach()
        reached = (y - y.gather(-1, labels.expand(2000, -1)[..., None])).amax(0)
        assert bool((reached <= leads + 1e-12).all())
        before = (model(x) - model(x).gather(-1, labels[:, None])).detach()
        nearest = max(nearest, float(((reached - before) / (leads - before)).nan_to_num().max()))
    assert nearest > 0.6
    # of one layer the bound is attained: eight tenths of it is not enough
    line = perceptron(0, 2, 2)
    (w,) = (line[0].weight[1] - line[0].weight[0])[None].detach()
    x = torch.zeros(1, 2, dtype=F64)
    y = line(x + 0.5 * w / w.norm()).detach()
    lead = SpectralMargin(radius=0.5).leads(line, x, torch.tensor([0]), line(x))[0, 1].detach()
    assert float(y[0, 1] - y[0, 0]) == pytest.approx(float(lead), rel=1e-12)


def test_the_constants_are_differentiable_also_where_rows_agree():
    model = perceptron(1, 3, 4, 2)
    weights = [p for p in model.parameters() if p.ndim == 2]

    def constants(first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        other = perceptron(1, 3, 4, 2)
        return torch.func.functional_call(_Constants(other), {"model.0.weight": first, "model.2.weight": last}, ())

    assert torch.autograd.gradcheck(constants, [w.detach().clone().requires_grad_() for w in weights])
    with torch.no_grad():
        model[-1].weight[1] = model[-1].weight[0]
    layerwise_constants(model).sum().backward()
    assert bool(torch.isfinite(model[0].weight.grad).all())


class _Constants(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self) -> torch.Tensor:
        return layerwise_constants(self.model)


def test_training_for_the_margin_proves_more_rows_than_training_without():
    data = subset(digits(), train=400, test=200)
    proved = []
    for loss in (SpectralMargin(radius=0.5, share=1.0), None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        options = {} if loss is None else {"loss": loss}
        train(model, data, epochs=10, batch_size=50, **options)
        unproved = SpectralMargin(radius=0.5).unproved(model, data.test_inputs, data.test_labels)
        proved.append(1 - float(unproved.double().mean()))
    assert proved[0] > proved[1] + 0.1


@pytest.mark.parametrize(
    "model",
    [
        LBEN(3, 4, 2),
        nn.Linear(3, 2),
        nn.Sequential(nn.Linear(3, 2), nn.ReLU()),
        nn.Sequential(nn.Softmax(dim=-1), nn.Linear(3, 2)),
    ],
    ids=["lben", "linear", "ends in an activation", "no activation"],
)
def test_other_models_are_refused(model):
    with pytest.raises(InputError):
        layerwise_constants(model)
