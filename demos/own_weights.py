"""Your own W, U, b: find a metric, certify, solve, and bound how much the output can change.

Nothing here was trained by this library. The metric proves that the equilibrium exists and is unique for every input.
"""

import torch

from contracting import ReLU, find_metric
from contracting.plots import new_axes
from contracting.plots.style import CERTIFIED, SEEN, figure_of, finish
from equilibrium import certified_lipschitz, explicit_weights, from_weights
from equilibrium.files import output_directory, write_figure

torch.manual_seed(3)
n = 15
W = 0.5 * torch.randn(n, n, dtype=torch.float64).tril(-1) + 0.3 * torch.randn(n, n, dtype=torch.float64) / n**0.5
U, b = torch.randn(n, 4, dtype=torch.float64), torch.randn(n, dtype=torch.float64)
W_o, b_o = torch.randn(3, n, dtype=torch.float64) / n, torch.zeros(3, dtype=torch.float64)

found = find_metric(W)
print(f"Λ found: m = {found.monotonicity:.3f} > 0, so z = σ(Wz + Ux + b) has exactly one solution for every x")
weights = explicit_weights(W, U, W_o, bias=b, output_bias=b_o, metric=found.metric.weights)
layer = from_weights(weights, activation=ReLU())

x = torch.randn(400, 4, dtype=torch.float64)
solution = layer.solve(x)
bound = certified_lipschitz(layer).bound
print(f"certified: error of the solve ≤ {float(solution.error_bound.max()):.1e}, Lipschitz constant ≤ {bound:.3f}")

steps = torch.logspace(-3, 1, 400, dtype=torch.float64)[:, None]
moved = x + steps * torch.nn.functional.normalize(torch.randn_like(x), dim=-1)
change = (layer(moved) - layer(x)).norm(dim=-1)
print(f"largest change of the output seen: {float((change / steps[:, 0]).max()):.3f} times that of the input")

axes = new_axes()
axes.loglog(steps[:, 0], change, ".", color=SEEN, markersize=3, label="seen")
axes.loglog(steps[:, 0], bound * steps[:, 0], label="certified", **CERTIFIED)
finish(axes, x="‖Δx‖", y="‖Δy‖", title="No pair of inputs changes the output by more than is certified")
write_figure(output_directory("out") / "own-weights.png", figure_of(axes), dpi=150)
