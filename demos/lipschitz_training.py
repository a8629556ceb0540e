"""Training under a Lipschitz bound: what γ costs in accuracy, and how much of it the trained network uses.

The bound holds for every value of the parameters, so that Adam needs no projection and no penalty.
"""

import torch

from contracting.plots import new_axes
from contracting.plots.style import BLUE, CERTIFIED, figure_of, finish
from equilibrium import LBEN, CrossEntropy, attained_lipschitz, certified_lipschitz, train
from equilibrium.files import output_directory, write_figure
from equilibrium.training.data import digits, subset

dataset = subset(digits(), train=600, test=400)
bounds, certified, attained, errors = [0.2, 0.5, 1.0, 2.0, 5.0], [], [], []
for gamma in bounds:
    torch.manual_seed(0)
    layer = LBEN(dataset.features, 20, dataset.classes, lipschitz=gamma)
    record = train(layer, dataset, epochs=4, loss=CrossEntropy(temperature=gamma / 5))
    layer = layer.double().requires_grad_(False)
    errors.append(record.epochs[-1].test_error)
    certified.append(certified_lipschitz(layer).bound)
    attained.append(attained_lipschitz(layer, dataset.test_inputs[:20].double()).ratio)
    print(
        f"γ = {gamma:3}: test error {errors[-1]:4.1f} %, certified afterwards {certified[-1]:.3f}, "
        f"attained by a pair of inputs {attained[-1]:.3f}"
    )

axes = new_axes()
axes.loglog(bounds, bounds, label="γ, built in", **CERTIFIED)
axes.loglog(bounds, certified, color=BLUE, marker="v", linestyle="none", label="certified after training")
axes.loglog(bounds, attained, color="0.45", marker="^", linestyle="none", label="attained by a pair")
for gamma, value, error in zip(bounds, attained, errors, strict=True):
    axes.annotate(f"{error:.1f} %", (gamma, value), xytext=(4, -12), textcoords="offset points", fontsize=8)
for axis in (axes.xaxis, axes.yaxis):
    axis.set_ticks(bounds, [f"{gamma:g}" for gamma in bounds])
axes.set_ylim(0.1, 6)
finish(axes, x="bound γ", y="Lipschitz constant", title="Built in, certified, attained; test errors beside the points")
write_figure(output_directory("out") / "lipschitz-training.png", figure_of(axes), dpi=150)
