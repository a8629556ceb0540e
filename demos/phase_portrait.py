"""Two units in the plane: a ball of initial states stays inside balls that shrink at the certified rate."""

import torch

from contracting import (
    Dense,
    EquilibriumProblem,
    FiringRate,
    SemismoothNewton,
    Tanh,
    WeightedL2,
    carry_ball,
    certify,
    simulate,
    solve,
)  # fmt: skip
from contracting.plots import new_axes, plot_phase_portrait
from contracting.plots.style import figure_of
from equilibrium.files import output_directory, write_figure

problem = EquilibriumProblem(
    linear=Dense(torch.tensor([[0.3, 1.0], [-1.0, 0.2]], dtype=torch.float64)),
    q=torch.tensor([[0.2, 0.1]], dtype=torch.float64),
    activation=Tanh(),
    metric=WeightedL2.identity(2, dtype=torch.float64),
)
flow = FiringRate().bind(problem)
certificate = certify(flow)
print(certificate)

times = torch.linspace(0, 5, 101, dtype=torch.float64)
centre = torch.tensor([-0.65, -0.65], dtype=torch.float64)
unit = float(certificate.metric.norm(torch.tensor([1.0, 0.0], dtype=torch.float64)))
ball = carry_ball(flow, centre, 0.3 * unit, times, evidence=certificate, points=80)
fills = float((ball.reached / ball.radius)[20:].max())
print(f"the image of the ball reaches at most {fills:.3f} of its certified radius after t = 1")

equilibrium = solve(problem, SemismoothNewton()).z[0]
starts = torch.tensor([[0.9, 0.9], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
axes = plot_phase_portrait(
    flow, new_axes(6.8, 4.8), x=(-1.1, 1.1), y=(-1.1, 1.1), equilibrium=equilibrium,
    trajectories=simulate(flow, starts, times).states, ball=ball,
)  # fmt: skip
write_figure(output_directory("out") / "phase-portrait.png", figure_of(axes), dpi=150)
