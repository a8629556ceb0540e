"""A contracting neural ODE forgets where it began: pairs under one moving input approach at the certified rate.

Its steady state under a constant input is an equilibrium problem as well, that can be integrated to or split for.
"""

import torch

from contracting import ContractingODE, FixedStep, LinearInterpolation, PeacemanRachford, ReLU, Stop, certify, solve
from contracting.plots import new_axes, plot_distance
from contracting.plots.style import figure_of
from equilibrium.files import output_directory, write_figure

torch.manual_seed(0)
layer = ContractingODE(
    1, 4, 24, 2, contraction_rate=0.5, lipschitz=2.0, activation=ReLU(), dtype=torch.float64,
    integrator=FixedStep(step=0.2),
).requires_grad_(False)  # fmt: skip
promised, gain = layer.certificates()  # for every value of the parameters
best = certify(layer.flow())  # for these values
print(f"{promised}\n{gain}\n{best}")

times = torch.linspace(0, 8, 41, dtype=torch.float64)
starts = 3 * torch.randn(16, 4, dtype=torch.float64)
moving = LinearInterpolation(torch.randn(41, 1, 1, dtype=torch.float64))
one, other = layer.response(starts, times, moving).states.chunk(2, dim=1)
distances = best.metric.norm(one - other)
slowest = float((distances / (-best.rate * times).exp()[:, None] / distances[0]).max())

constant = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
split = layer.flow(constant).steady_state(
    solve(layer.equilibrium_problem(constant), PeacemanRachford(), stop=Stop(rtol=1e-12)).z
)
integrated = layer.response(None, torch.tensor([0.0, 15.0], dtype=torch.float64), constant).states[-1]
difference = float((split - integrated).abs().max())
print(f"distances at most {slowest:.4f} of the certified line; integrated and split states differ by {difference:.0e}")

axes = plot_distance(times, distances, new_axes(), evidence=best)
axes.set_xlabel("time")
title = f"Promised {promised.rate:g}, proved {best.rate:.2f} of these parameters: every pair keeps to it"
axes.set_title(title, loc="left", fontsize=10)
write_figure(output_directory("out") / "contracting_ode.png", figure_of(axes), dpi=150)
