"""The convex view: where ΛW is symmetric, the equilibrium minimises an energy, and flows and iterations descend it.

m‖·‖² convexity gives E(t) − E* ≤ e^{−mt}(E(0) − E*) along the flows; the iteration obeys the same at times αk.
"""

import torch

from contracting import (
    Dense,
    Energy,
    EquilibriumProblem,
    FiringRate,
    ForwardBackward,
    ReLU,
    SemismoothNewton,
    Stop,
    Trace,
    WeightedL2,
    simulate,
    solve,
)  # fmt: skip
from contracting.plots import new_axes, plot_energy_descent
from contracting.plots.style import figure_of
from equilibrium.files import output_directory, write_figure

problem = EquilibriumProblem(
    linear=Dense(torch.tensor([[0.3, 0.5], [0.5, 0.1]], dtype=torch.float64)),
    q=torch.tensor([[0.5, -0.1]], dtype=torch.float64),
    activation=ReLU(),
    metric=WeightedL2.identity(2, dtype=torch.float64),
)
energy = Energy(problem)
lowest = energy(solve(problem, SemismoothNewton(), stop=Stop(rtol=1e-14)).z)
start = torch.tensor([[0.3, 1.4]], dtype=torch.float64)

times = torch.linspace(0, 12, 61, dtype=torch.float64)
states = simulate(FiringRate().bind(problem), start, times).states[:, 0]
flow_gap = energy(states) - lowest

alpha, trace = 0.3, Trace(keep_z=True)
solve(problem, ForwardBackward(step=alpha), z0=start, stop=Stop(rtol=1e-12, check_every=1), trace=trace)
iteration_gap = (energy(trace.z[:, 0]) - lowest).clamp_min(1e-16)
assert bool((iteration_gap.diff() <= 1e-12).all())

m = energy.strong_convexity
worst = float((flow_gap / flow_gap[0] * torch.exp(m * times))[1:].max())
print(f"m = {m:.3f}, L = {energy.smoothness:.3f}; along the flow E − E* is at most {worst:.3f} of its bound e^(−mt)")

keep = iteration_gap > 1e-12
axes = plot_energy_descent(
    {"firing rate": (times, flow_gap)}, new_axes(), energy=energy,
    iterations={f"forward–backward, α = {alpha}": (alpha * trace.steps[keep].double(), iteration_gap[keep])},
)  # fmt: skip
write_figure(output_directory("out") / "energy.png", figure_of(axes), dpi=150)
