"""``ode-layer``: train the ODE-based layer, swap its solver, and compare outputs and gradients."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from contracting.integrators.torchdiffeq_adapter import KINDS
from equilibrium import EquilibriumLayer, PeacemanRachford, Stop, TorchDiffEq, train
from equilibrium.experiments.networks import digits_for, new_layer
from equilibrium.experiments.options import Seed, Small, Threads
from equilibrium.experiments.publishing import on_threads


def ode_layer(
    method: Annotated[str, f"Integrator of torchdiffeq: {', '.join(KINDS)}."] = "dopri5",
    hidden: Annotated[int, "Neurons."] = 40,
    epochs: Annotated[int, "Passes over the training images."] = 2,
    seed: Seed = 0,
    threads: Threads = 1,
    small: Small = False,
) -> None:
    """Train the ODE-based layer on digits, swap its solver, and compare outputs and gradients."""
    with on_threads(threads):
        dataset = digits_for(seed, small=small)
        layer = new_layer(dataset, hidden, seed, lipschitz=1.0, solver=TorchDiffEq(method))
        record = train(layer, dataset, epochs=epochs, seed=seed, progress=True)
        print(f"trained with {method}: {record.seconds:.1f} s (one run), test error {record.test_error:.2f} %")
        layer = layer.double()
        layer.stop = Stop(rtol=1e-10)
        inputs, labels = dataset.test_inputs[:64].double(), dataset.test_labels[:64]
        by_ode = _output_and_gradient(layer, inputs, labels)
        layer.solver = PeacemanRachford()
        by_splitting = _output_and_gradient(layer, inputs, labels)
        for what, a, b in zip(("outputs", "gradients"), by_ode, by_splitting, strict=True):
            print(f"{what}: largest difference to PeacemanRachford() {float((a - b).abs().max()):.1e}")


def _output_and_gradient(layer: EquilibriumLayer, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    outputs = layer(inputs)
    gradients = torch.autograd.grad(cross_entropy(outputs, labels), list(layer.parameters()))
    return outputs.detach(), torch.cat([gradient.flatten() for gradient in gradients])
