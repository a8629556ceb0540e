"""The known trap: well-posed for every input, and yet two trajectories under the same input diverge.

W = k[[0, 1], [−1, 0]] satisfies Condition 1 for every k, with m = 1. At k = 10 a bounded periodic input makes two
firing-rate trajectories separate at the rate 2.31; the forward–backward flow of the same network contracts.
"""

import torch

from contracting import FiringRate, FixedStep, decay_rate, distance, report, simulate_pairs
from contracting.plots import new_axes, plot_distance
from contracting.plots.style import figure_of
from contracting.simulation.counterexample import SwitchingCounterexample
from equilibrium.files import output_directory, write_figure

trap = SwitchingCounterexample(gain=10.0, dwell=0.363)
flow = FiringRate().bind(trap.problem)
rates = report(flow)
monotonicity = trap.problem.operator.bounds.monotonicity
print(f"Condition 1 holds: m = {monotonicity:.3f}. Certified rate {rates.best.rate:.3f} (quadratic: 1 − k/2 = −4)")

times = trap.times(20)
start = trap.reference(times[:1])
near = start + torch.tensor([[1e-9, 0.0]], dtype=torch.float64)
pair = simulate_pairs(flow, start, near, times, signal=trap.signal, integrator=FixedStep(step=trap.dwell / 24))
certificate = rates.best
apart = distance(pair, certificate.metric)[:, 0]
growth = -float(decay_rate(times[::2], apart[::2], skip=2 * trap.dwell, floor=1e-15).rate)
print(f"growth exponent: {growth:.4f} simulated, {trap.exponent:.4f} in closed form")

axes = plot_distance(
    times, apart[:, None], new_axes(), evidence=certificate, bound=rates.bound.rate,
    title=f"Condition 1 holds, and two trajectories separate at the rate {growth:.2f}",
)  # fmt: skip
write_figure(output_directory("out") / "counterexample.png", figure_of(axes), dpi=150)
