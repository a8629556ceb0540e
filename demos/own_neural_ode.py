"""A neural ODE of one's own, read and proved: its certified rate beside trajectories, and its rest by splitting.

s' = As + MLP(s) + (sin t, 0) with two hidden layers: the field runs once, and the matrices it is made of are certified.
"""

import torch
from torch import nn

from contracting import (
    NeuralFlow,
    PeacemanRachford,
    carry_ball,
    distance,
    find_metric,
    lure_of,
    report,
    simulate,
    simulate_pairs,
    solve,
)
from contracting.plots import new_axes, plot_distance, plot_phase_portrait
from contracting.plots.style import figure_of
from equilibrium.files import output_directory, write_figure

torch.manual_seed(7)
net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, 2))
net = net.double().requires_grad_(False)
A = torch.tensor([[-1.0, 1.5], [-1.5, -1.0]], dtype=torch.float64)
push = torch.tensor([1.0, 0.0], dtype=torch.float64)
still = NeuralFlow(lambda t, s: s @ A.mT + 1.2 * net(2 * s))
moving = NeuralFlow(lambda t, s: still(t, s) + torch.sin(t) * push)

rates = report(moving)
print(rates)
certificate = rates.best

read = lure_of(still)  # the same field as matrices, with w = σ(Cs + Dw + q)
problem = read.equilibrium_problem(metric=find_metric(read.system().steady_weight).metric)
rest = read.steady_state(solve(problem, PeacemanRachford()).z)
print(f"at rest by splitting, |f| = {float(still(0.0, rest).norm()):.1e}")

times = torch.linspace(0, 4, 81, dtype=torch.float64)
first, second = 2 * torch.randn(2, 30, 2, dtype=torch.float64)
apart = distance(simulate_pairs(moving, first, second, times), certificate.metric)
kept = float((apart / apart[0] * torch.exp(certificate.rate * times)[:, None])[20:].max())
print(f"after t = 1 the slowest of 30 pairs is at {kept:.3f} of its certified distance")

centre = torch.tensor([-1.4, -1.2], dtype=torch.float64)
radius = 0.35 * float(certificate.metric.norm(torch.tensor([1.0, 0.0], dtype=torch.float64)))
ball = carry_ball(still, centre, radius, times[:61], evidence=certificate, points=80)
starts = torch.tensor([[1.8, 1.5], [-1.8, 1.6], [1.7, -1.6]], dtype=torch.float64)

figure = figure_of(new_axes(11.0, 4.6))
figure.clear()
left, right = figure.subplots(1, 2)
plot_phase_portrait(still, left, x=(-2, 2), y=(-2, 2), equilibrium=rest[0],
                    trajectories=simulate(still, starts, times).states, ball=ball)  # fmt: skip
plot_distance(times, apart, right, evidence=certificate, bound=rates.bound.rate)
write_figure(output_directory("out") / "own-neural-ode.png", figure, dpi=150)
