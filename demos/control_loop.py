"""Model-predictive control at a fixed rate: three steps per tick from the last plan, beside cold starts and an ODE.

The best plan of forces within limits is where z = clip(z − (Hz + Fx)/h) comes to rest: an equilibrium network. Each
tick has time for three steps. From the last plan they keep a certified error; three Euler steps of the firing-rate ODE
follow with a larger one and no bound, and so do three steps from zero.
"""

import torch

from contracting import ExplicitEuler, HardTanh, Stop
from contracting.plots.style import BLUE, GREEN, ORANGE, SEEN, figure_of, finish, new_axes
from equilibrium import FixedTracking, explicit_weights, from_weights
from equilibrium.files import output_directory, write_figure

TICK, AHEAD, STEPS, TICKS = 0.1, 20, 3, 200  # seconds, ticks that a plan looks ahead, steps per tick, ticks
torch.set_default_dtype(torch.float64)
A, B = torch.tensor([[1.0, TICK], [0.0, 1.0]]), torch.tensor([TICK**2 / 2, TICK])  # position and speed, and a force
powers = [torch.linalg.matrix_power(A, k) for k in range(AHEAD + 1)]
pushes = [torch.cat([torch.zeros(2 * j), *(powers[k] @ B for k in range(AHEAD - j))]) for j in range(AHEAD)]
free, forced, cost = torch.cat(powers[1:]), torch.stack(pushes, 1), torch.tensor([1.0, 0.1]).repeat(AHEAD)[:, None]
H, F = forced.mT @ (cost * forced) + 0.1 * torch.eye(AHEAD), forced.mT @ (cost * free)
h = float(torch.linalg.matrix_norm(H, 2))
weights = explicit_weights(torch.eye(AHEAD) - H / h, -F / h, torch.eye(AHEAD)[:1], metric=torch.ones(AHEAD))
layer = from_weights(weights, activation=HardTanh(), stop=Stop(rtol=1e-12))
warm, cold = FixedTracking(layer, steps=STEPS), FixedTracking(layer, steps=STEPS - 1)  # start() is a step


def loop(control):
    """Force, its distance from the best one and what is certified of that, at every tick of a loop after a sine."""
    state, memory, seen = torch.zeros(2), None, []
    for tick in range(TICKS):
        goal = 1.5 * torch.sin(torch.tensor([0.4 * TICK * tick, 0.0]))
        force, bound, memory = control((state - goal)[None], memory)
        seen.append((float(force), float((force - layer((state - goal)[None])).abs()), float(bound)))
        state = A @ state + B * force.squeeze()
    return torch.tensor(seen)


def tracked(x, state):
    found = warm(x, warm.start(x) if state is None else state)
    return found.y, found.y_error, found.state


def euler(x, z):
    z = layer.solve(x, ExplicitEuler(), z0=z, stop=Stop(rtol=1e-14, max_steps=STEPS), throw=False).z
    return z[:, :1], torch.nan, z


runs = {"warm": loop(tracked), "warm, Euler": loop(euler), "cold": loop(lambda x, _: cold(x, cold.start(x))[:3])}
torch.set_default_dtype(torch.float32)
ratio = float((runs["warm"][:, 1] / runs["warm"][:, 2]).max())
print(f"factor {warm.certificate.factor:.3f}, L {warm.certificate.speed:.3g}; error at most {ratio:.2f} of its bound")
axes, times = new_axes(), TICK * torch.arange(TICKS)
axes.semilogy(times[5:], runs["warm"][5:, 2], color=SEEN, linestyle="--", label="warm, certified")
for (name, run), colour in zip(runs.items(), (BLUE, ORANGE, GREEN), strict=True):
    print(f"{name:12} force wrong by up to {float(run[10:, 1].max()):.1e} after the first second")
    axes.semilogy(times[5:], run[5:, 1].clamp(min=1e-8), color=colour, label=name)
axes.set_ylim(1e-4, 1)
finish(axes, x="time / s", y="error of the force (limits ±1)", title="Three steps per tick: warm, cold, and an ODE")
write_figure(output_directory("out") / "control-loop.png", figure_of(axes), dpi=150)
