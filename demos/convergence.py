"""How fast splittings converge, beside the factor that is proved for each of them before the first step.

The factors hold for the distance to the equilibrium in the metric Λ of the layer; the curves are measured.
"""

import torch

from contracting import DouglasRachford, ForwardBackward, PeacemanRachford, SemismoothNewton, Stop, Trace, Tseng, solve
from contracting.plots import new_axes
from contracting.plots.style import BLUE, GREEN, ORANGE, PURPLE, figure_of, finish
from equilibrium import LBEN
from equilibrium.files import output_directory, write_figure

torch.manual_seed(1)
layer = LBEN(20, 40, 5, lipschitz=2.0, dtype=torch.float64).requires_grad_(False)
problem = layer.problem(3 * torch.randn(16, 20, dtype=torch.float64))
equilibrium = solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-14)).z
methods = {
    "Peaceman–Rachford": (PeacemanRachford(), BLUE),
    "Douglas–Rachford": (DouglasRachford(), GREEN),
    "Tseng": (Tseng(), ORANGE),
    "forward–backward": (ForwardBackward(), PURPLE),
}

axes, factors, excess = new_axes(), {}, {}
for name, (method, colour) in methods.items():
    stop, trace = Stop(rtol=1e-11, max_steps=150, check_every=1), Trace(keep_z=True)
    solve(problem, method, stop=stop, trace=trace, throw=False)
    factors[name] = method.bind(problem, stop.resolved(problem)).factor
    distance = problem.metric.norm(trace.z - equilibrium).amax(-1)
    proved = distance[0] * factors[name] ** trace.steps
    excess[name] = float((distance / proved)[1:][distance[1:] > 1e-9 * distance[0]].max())
    axes.semilogy(trace.steps, distance / distance[0], color=colour, label=f"{name}, measured")
    axes.semilogy(trace.steps, proved / distance[0], color=colour, linestyle="--", label=f"proved, {factors[name]:.3f}")
    print(f"{name:18} proved factor {factors[name]:.4f}, largest measured / proved {excess[name]:.3f}")
axes.set_ylim(1e-11, 3)
finish(axes, x="iteration", y="distance to the equilibrium / first one", title="Splittings beside their proved factors")
write_figure(output_directory("out") / "convergence.png", figure_of(axes), dpi=150)
