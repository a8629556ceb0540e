"""What the benchmarks solve: trained networks, given or trained here and now, and how a solution is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from contracting.errors import InputError
from contracting.problem import EquilibriumProblem
from equilibrium.checkpoints import load_reference
from equilibrium.layers import LBEN, EquilibriumLayer
from equilibrium.training.data import Dataset, digits, mnist, subset
from equilibrium.training.loop import train

# file → the γ it was trained with, which the file does not store; the unconstrained one has no certificate
CHECKPOINTS = {
    "fc_lip0.3_w80": 0.3, "fc_lip1.0_w80": 1.0, "fc_lip5.0_w80": 5.0, "lben_w80": None, "mondeq_w80": None
}  # fmt: skip
_SLACK = 1.01  # a float32 residual of 1e-5 is not the same number in float64


@dataclass(frozen=True, kw_only=True)
class Network:
    """A trained network and images for it."""

    name: str
    layer: EquilibriumLayer
    inputs: Tensor

    def problem(self, rows: int, dtype: torch.dtype) -> EquilibriumProblem:
        """The problem of the first ``rows`` images, or of all again and again where there are fewer."""
        index = torch.arange(rows) % len(self.inputs)
        with torch.no_grad():
            layer = self.layer.to(dtype)
            return layer.problem(self.inputs[index].to(layer.parameterization.example)).detach()


def networks(checkpoints: Path | None, data: Path | None, *, small: bool) -> list[Network]:
    """The checkpoints of a folder with the MNIST test images, or one network trained on the bundled digits."""
    if checkpoints is None:
        return [digits_network(small=small)]
    found = {name: gamma for name, gamma in CHECKPOINTS.items() if (checkpoints / f"{name}.pt").is_file()}
    if not found:
        raise InputError(f"{checkpoints} holds none of {', '.join(f'{name}.pt' for name in CHECKPOINTS)}")
    images = mnist(data)
    chosen = list(found.items())[:1] if small else list(found.items())
    return [
        Network(
            name=name.removesuffix("_w80"),
            layer=load_reference(checkpoints / f"{name}.pt", lipschitz=gamma),
            inputs=images.test_inputs,
        )
        for name, gamma in chosen
    ]


def digits_network(*, small: bool) -> Network:
    """LBEN(64, 80, 10, lipschitz=1) after a few passes over the bundled digits, the same in every run."""
    data = digits()
    hidden = 80
    if small:
        data, hidden = subset(data, train=300, test=100), 16
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LBEN(data.features, hidden, data.classes, lipschitz=1.0)
    train(layer, data, epochs=1 if small else 10, batch_size=64, seed=0)
    return Network(name="digits", layer=layer, inputs=torch.cat([data.test_inputs, data.train_inputs]))


def images_28(data: Path | None) -> Dataset:
    """MNIST from a folder, or the bundled digits enlarged to its size, so that 784 inputs are images anywhere."""
    if data is not None:
        return mnist(data)
    small = digits()

    def enlarged(inputs: Tensor) -> Tensor:
        images = inputs.reshape(-1, 1, 8, 8)
        return torch.nn.functional.interpolate(images, size=(28, 28), mode="bilinear").flatten(1)

    return Dataset(
        name="digits, enlarged",
        train_inputs=enlarged(small.train_inputs),
        train_labels=small.train_labels,
        test_inputs=enlarged(small.test_inputs),
        test_labels=small.test_labels,
        classes=small.classes,
        normalization=small.normalization,
        image_shape=(1, 28, 28),
    )


def true_residual(W: Tensor, q: Tensor, z: Tensor) -> float:
    """‖z − ReLU(Wz + q)‖/‖ReLU(Wz + q)‖ of the worst row, in float64; infinite where it is not finite."""
    z, W, q = z.double(), W.double(), q.double()
    image = torch.relu(z @ W.mT + q)
    worst = float((torch.linalg.vector_norm(z - image, dim=-1) / torch.linalg.vector_norm(image, dim=-1)).max())
    return worst if math.isfinite(worst) else math.inf


def accepted(target: float, dtype: torch.dtype) -> float:
    """The largest true residual that counts as ``target``; the same rule for everyone."""
    return target * (_SLACK if dtype == torch.float32 else 1.0)


def fitted_exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of log value against log size by least squares."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(values, dtype=torch.float64).log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())
