"""A contracting flow follows its moving equilibrium: the error beside the bound that the certified rate proves.

‖s(t) − s*(t)‖ ≤ e^{−ct}‖s(0) − s*(0)‖ + (1 − e^{−ct})/c · sup‖ds*/dt‖ for an input that never rests.
"""

import torch

from contracting import FiringRate, certify, track
from contracting.plots import new_axes, plot_tracking
from contracting.plots.style import figure_of
from equilibrium import LBEN
from equilibrium.files import output_directory, write_figure

torch.manual_seed(0)
layer = LBEN(2, 12, 2, contraction_rate=0.4, dtype=torch.float64).requires_grad_(False)
flow = layer.flow(FiringRate, torch.zeros(1, 2, dtype=torch.float64))
certificate = certify(flow)
weights = layer.weights()


def circle(t):
    """The input x(t) on a circle, as q = Ux + b: (batch, 1) or () -> (batch, 12)."""
    t = t.reshape(-1)
    return torch.stack([torch.cos(0.5 * t), torch.sin(0.5 * t)], -1) @ weights.input.mT + weights.bias


times = torch.linspace(0, 25, 201, dtype=torch.float64)
start = 2 * torch.rand(3, 12, dtype=torch.float64)
result = track(flow, circle, times, start=start, evidence=certificate)
ratio = float((result.error / result.bound).max())
print(f"certified rate {certificate.rate:.3f}; error at most {ratio:.3f} of its bound, at every time")

axes = plot_tracking(result, new_axes())
write_figure(output_directory("out") / "tracking.png", figure_of(axes), dpi=150)
