"""Does a firing-rate network contract? Its certified rate beside trajectories, and beside what no proof can exceed.

z' = −z + tanh(Wz + q(t)) of 12 units: one call certifies a rate in a metric of its own, for every input q(t).
"""

import torch

from contracting import Dense, EquilibriumProblem, FiringRate, Tanh, distance, report, simulate_pairs
from contracting.plots import new_axes, plot_distance
from contracting.plots.style import figure_of
from equilibrium.files import output_directory, write_figure

torch.manual_seed(2)
n = 12
W = 0.9 * torch.randn(n, n, dtype=torch.float64) / n**0.5
q = torch.randn(1, n, dtype=torch.float64)
flow = FiringRate().bind(EquilibriumProblem(linear=Dense(W), q=q, activation=Tanh()))

rates = report(flow)
print(rates)
certificate = rates.best
assert certificate.rate <= rates.bound.rate


def moving_input(t):
    """A bounded input that all trajectories share: () -> (12,)."""
    return q[0] + torch.sin(torch.arange(1, n + 1, dtype=torch.float64) * t)


times = torch.linspace(0, 8, 161, dtype=torch.float64)
first, second = torch.randn(2, 30, n, dtype=torch.float64)
pairs = distance(simulate_pairs(flow, first, second, times, signal=moving_input), certificate.metric)
slowest = float((pairs / pairs[0] * torch.exp(certificate.rate * times)[:, None])[20:].max())
print(f"slowest of 30 pairs: at most {slowest:.3f} of the certified distance after t = 1")

axes = plot_distance(times, pairs, new_axes(), evidence=certificate, bound=rates.bound.rate)
write_figure(output_directory("out") / "firing-rate-network.png", figure_of(axes), dpi=150)
