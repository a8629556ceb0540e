"""Ten lines of Python that reproduce what the page shows."""

from __future__ import annotations

from torch import Tensor

from equilibrium.explorer.answer import NAMED, Answer

_FLOWS = {
    "firing rate": "FiringRate()",
    "Hopfield": "Hopfield()",
    "forward–backward": "ForwardBackwardFlow(step={step!r})",
    "Peaceman–Rachford": "PeacemanRachfordFlow(step={step!r})",
}


def script(answer: Answer) -> str:
    """A script that prints the certificates and the solves of the page, and draws its trajectories."""
    setting, motion = answer.setting, answer.motion
    end = float(motion.times[-1])
    flow = _FLOWS[setting.flow].format(step=setting.step)
    solvers = [run.name for run in answer.runs if run.name in NAMED and run.refused is None]
    return f"""\
import torch
from contracting import *
from contracting.plots import plot_distance
W, q = torch.tensor({_rows(setting.W)}).double(), torch.tensor([{list(setting.q)}]).double()
problem = EquilibriumProblem(linear=Dense(W), q=q, activation={setting.sigma!r}, metric=find_metric(W).metric)
flow, starts = {flow}.bind(problem), torch.tensor({_rows(motion.pair[0])}).double()
pair = simulate_pairs(flow, starts[:1], starts[1:], torch.linspace(0, {end!r}, {len(motion.times)}).double())
rates, solvers = report(flow), {solvers}
plot_distance(pair.times, distance(pair, rates.best.metric), evidence=rates.best).figure.savefig("distance.png")
print(rates, *(f"{{name}}: {{solve(problem, default_solvers()[name], throw=False)}}" for name in solvers), sep="\\n")
"""


def _rows(values: Tensor) -> list[list[float]]:
    return [[float(f"{value:.9g}") for value in row] for row in values.tolist()]
