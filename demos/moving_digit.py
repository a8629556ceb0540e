"""A moving digit: a network follows it by two steps per frame, with a certified error.

Each frame is solved by two steps of Peaceman–Rachford from the last one, by two steps from zero, or by two steps of an
ODE integrator, Heun's on the firing-rate flow, from the last one. Only the first comes with a bound.
"""

import torch

from contracting import Heun, Stop
from contracting.plots import new_axes
from contracting.plots.style import BLUE, GREEN, ORANGE, SEEN, figure_of, finish
from equilibrium import LBEN, FixedTracking, train
from equilibrium.files import output_directory, write_figure
from equilibrium.training.data import digits, subset

torch.manual_seed(0)
dataset = subset(digits(), train=600, test=200)
layer = LBEN(dataset.features, 40, dataset.classes, lipschitz=5.0)
train(layer, dataset, epochs=6, learning_rate=0.02)
layer = layer.double().requires_grad_(False)
layer.stop = Stop(rtol=1e-10)
low = dataset.test_inputs.min()
picture = (dataset.test_inputs[:1] - low).reshape(1, 1, *dataset.image_shape[1:])


def frame(number, pixels=0.02):
    """The digit after so many frames on a circle of one pixel: (1, features)."""
    angle = torch.tensor(pixels * number)
    shift = 2 / picture.shape[-1] * torch.stack([torch.cos(angle) - 1, torch.sin(angle)])
    grid = torch.nn.functional.affine_grid(
        torch.cat([torch.eye(2), shift[:, None]], 1)[None], picture.shape, align_corners=False
    )
    return (torch.nn.functional.grid_sample(picture, grid, align_corners=False).flatten(1) + low).double()


STEPS, FRAMES = 2, 315
warm, cold = FixedTracking(layer, steps=STEPS), FixedTracking(layer, steps=STEPS - 1)  # start() is a step
state = warm.follow(frame(0), warm.start(frame(0)), 1e-6)[0].state
z = layer.solve(frame(0)).z
metric, rows = layer.weights().metric, []
for number in range(1, FRAMES):
    x = frame(number)
    exact = layer.solve(x).z
    found = warm(x, state)
    state = found.state
    z = layer.solve(x, Heun(), z0=z, stop=Stop(rtol=1e-14, max_steps=STEPS), throw=False).z
    errors = [metric.norm(each - exact) for each in (found.z, z, cold(x, cold.start(x)).z)]
    rows.append(torch.cat([found.z_error, *errors]) / metric.norm(exact))
certified, *errors = torch.stack(rows).mT
ratio = float((errors[0] / certified).max())
print(f"factor {warm.certificate.factor:.3f}, L {warm.certificate.speed:.3g}; error at most {ratio:.2f} of its bound")

axes = new_axes()
axes.semilogy(certified, color=SEEN, linestyle="--", label="warm, certified")
for name, error, colour in zip(("warm", "warm, Heun", "cold"), errors, (BLUE, ORANGE, GREEN), strict=True):
    print(f"{name:12} relative error of z up to {float(error.max()):.1e}")
    axes.semilogy(error, color=colour, label=name)
finish(axes, x="frame", y="relative error of z", title="Two steps per frame of a moving digit")
write_figure(output_directory("out") / "moving-digit.png", figure_of(axes), dpi=150)
