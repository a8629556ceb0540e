"""Every solver on the same equilibria: ODE integrators and operator splittings, counted in products with W.

One network, one tolerance, one stopping rule (the residual of the problem itself), so that the counts mean the same.
"""

import matplotlib.figure
import torch

from contracting import Stop, default_solvers, solve
from contracting.loop.method import Family
from contracting.plots.style import BLUE, FULL_WIDTH, GREEN, ORANGE, PURPLE, finish
from equilibrium import LBEN
from equilibrium.files import output_directory, write_figure

torch.manual_seed(0)
layer = LBEN(20, 40, 5, lipschitz=1.0, dtype=torch.float64).requires_grad_(False)
problem = layer.problem(torch.randn(8, 20, dtype=torch.float64))
stop = Stop(rtol=1e-6, max_steps=20_000)
truth = solve(problem, default_solvers()["SemismoothNewton"], stop=Stop(rtol=1e-12)).z

work, colours, worst = {}, {}, 0.0
families = dict(zip(Family, (BLUE, GREEN, ORANGE, PURPLE), strict=True))
for name, method in default_solvers().items():
    if name in ("FISTA", "torchdiffeq-BDF"):  # FISTA needs a symmetric ΛW; BDF takes one row after the other
        continue
    solution = solve(problem, method, stop=stop, throw=False)
    if not solution.converged.all():
        print(f"{name}: not solved in {stop.max_steps} steps")
        continue
    work[name], colours[name] = solution.map_evals, families[method.family]
    worst = max(worst, float((solution.z - truth).norm(dim=-1).max() / truth.norm(dim=-1).min()))
    print(f"{name:36} {solution.map_evals:6} products with W, {int(solution.steps.max()):5} steps")
print(f"largest relative distance to the equilibrium: {worst:.1e}")

order = sorted(work, key=lambda name: work[name])
axes = matplotlib.figure.Figure(figsize=(FULL_WIDTH, 5.6), layout="constrained").subplots()
axes.barh(order[::-1], [work[name] for name in order[::-1]], color=[colours[name] for name in order[::-1]])
axes.set_xscale("log")
for family, colour in families.items():
    axes.barh([order[0]], [0], color=colour, label=family.value)
finish(axes, x="products with W (factorisations not counted)", y="", title="The same equilibria, to 1e-6", legend=False)
axes.legend(loc="lower right", fontsize=9)
axes.margins(y=0.01)
write_figure(output_directory("out") / "compare-solvers.png", axes.figure, dpi=150)
