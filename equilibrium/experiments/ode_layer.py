"""``ode-layer``: train the ODE-based layer, swap its solver, and compare outputs and gradients."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

from collections.abc import Callable
from types import ModuleType
from typing import Annotated

import torch
from torch import Tensor

from contracting import checks
from contracting.integrators import TorchDiffEq
from contracting.loop.records import Stop
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.experiments.common import THREADS_HELP, new_layer, running_with
from equilibrium.layers import EquilibriumLayer
from equilibrium.training.classifier import train
from equilibrium.training.data import digits, subset


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def ode_layer(
        method: Annotated[str, option(help="Integrator of torchdiffeq (dopri5, bosh3, rk4, ...).")] = "dopri5",
        hidden: Annotated[int, option(help="Neurons.")] = 40,
        epochs: Annotated[int, option(help="Passes over the training images.")] = 2,
        seed: Annotated[int, option(help="Of the weights and of the order of the images.")] = 0,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        small: Annotated[bool, option("--small", help="Train on a fifth of the images.")] = False,
    ) -> None:
        """Train the ODE-based layer on digits, swap its solver, and compare outputs and gradients."""
        with running_with(checks.whole_number("--threads", threads)):
            _ode_layer(TorchDiffEq(method), hidden, epochs, seed, small)

    return ode_layer


def _ode_layer(solver: TorchDiffEq, hidden: int, epochs: int, seed: int, small: bool) -> None:
    dataset = digits(seed=seed)
    dataset = subset(dataset, train=256, test=100) if small else dataset
    layer = new_layer(dataset, hidden, seed, lipschitz=1.0, solver=solver)
    record = train(layer, dataset, epochs=epochs, seed=seed, progress=True)
    print(f"trained with {solver.method}: {record.seconds:.1f} s, test error {record.test_error:.2f} %")
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
    loss = torch.nn.functional.cross_entropy(outputs, labels)
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    return outputs.detach(), torch.cat([gradient.flatten() for gradient in gradients])
