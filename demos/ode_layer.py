"""The ODE-based LBEN layer inside a model of your own: train it with torchdiffeq, then swap the solver.

The solver is a setting: weights, outputs and gradients do not depend on it.
"""

import argparse

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from contracting import Stop
from contracting.integrators import TorchDiffEq
from equilibrium import LBEN, PeacemanRachford
from equilibrium.training.data import digits


def outputs_and_gradients(model, inputs, labels):
    outputs = model(inputs)
    gradients = torch.autograd.grad(cross_entropy(outputs, labels), list(model.parameters()))
    return outputs.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def main(steps: int, hidden: int) -> None:
    torch.manual_seed(0)
    data = digits()
    layer = LBEN(32, hidden, 16, lipschitz=1.0, solver=TorchDiffEq("dopri5"))
    model = nn.Sequential(nn.Linear(64, 32), layer, nn.Linear(16, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        rows = torch.randint(len(data.train_labels), (64,))
        loss = cross_entropy(model(data.train_inputs[rows]), data.train_labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 5) == 0 or step == steps - 1:
            print(f"step {step + 1:3d} with {layer.solver.method}: loss {loss:.3f}")

    model.double()
    layer.stop = Stop(rtol=1e-10)
    test = data.test_inputs[:100].double(), data.test_labels[:100]
    with_ode = outputs_and_gradients(model, *test)
    layer.solver = PeacemanRachford()
    with_splitting = outputs_and_gradients(model, *test)
    for name, a, b in zip(("outputs", "gradients"), with_ode, with_splitting, strict=True):
        print(f"{name} by dopri5 and by Peaceman–Rachford differ by at most {float((a - b).abs().max()):.1e}")
    error = 100 * float((with_splitting[0].argmax(-1) != test[1]).double().mean())
    print(f"test error {error:.0f} %, Lipschitz constant of the layer certified: {float(layer.weights().lipschitz):g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few steps only")
    small = parser.parse_args().small
    main(steps=10 if small else 60, hidden=16 if small else 40)
