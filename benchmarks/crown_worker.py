"""Radii and Jacobian bounds by auto_LiRPA, in the environment that make_crown.sh made; knows nothing of this library.

Usage: crown_worker.py PROBLEM ANSWER THREADS. The problem holds the weights and biases of a ReLU perceptron, inputs,
the class of each and the accuracy of radii; the answer the radii in ℓ2 by CROWN and α-CROWN, the processor seconds of
each, and for each output a bound of |J_i1| + |J_i2| + …, the row of its Jacobian, for all slopes in [0, 1].
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
import torch.onnx.symbolic_helper as helper
import torch.onnx.utils
from torch import Tensor, nn
from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

# auto_LiRPA 0.3, the newest one in the registry, asks of torch 1.12 what torch has under other names now
helper._set_opset_version = lambda number: setattr(GLOBALS, "export_onnx_opset_version", number)
torch._C.Node.__getitem__ = lambda node, name: getattr(node, node.kindOf(name))(name)

from auto_LiRPA import BoundedModule, BoundedTensor  # noqa: E402
from auto_LiRPA.perturbations import PerturbationLpNorm  # noqa: E402

members = BoundedModule._named_members
BoundedModule._named_members = lambda self, get, prefix="", recurse=True, **_: members(self, get, prefix, recurse)

Layers = list[tuple[Tensor, Tensor]]


def perceptron(layers: Layers) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


class Jacobian(nn.Module):
    """The slopes of each layer, (in, n) with one row for all inputs, to the transposed Jacobian, (in, out)."""

    def __init__(self, layers: Layers):
        super().__init__()
        self.first = nn.Parameter(layers[0][0].mT.contiguous())
        self.others = nn.ModuleList()
        for weight, _ in layers[1:]:
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.load_state_dict({"weight": weight})
            self.others.append(linear)

    def forward(self, *slopes: Tensor) -> Tensor:
        rows = self.first
        for part, linear in zip(slopes, self.others, strict=True):
            rows = linear(part * rows)
        return rows


def leads(problem: dict[str, Any], radius: Tensor, method: str) -> Tensor:
    """Whether every lead of the class is proved to be positive, (batch,)."""
    inputs, labels = problem["inputs"], problem["labels"]
    # a model that was used keeps the neurons of that radius, and one that saves memory by them fails on several inputs
    whole = {"sparse_features_alpha": False, "sparse_spec_alpha": False}
    model = BoundedModule(perceptron(problem["layers"]), inputs, bound_opts=whole)
    classes = torch.eye(len(problem["layers"][-1][1]))
    others = torch.stack([torch.cat([classes[:i], classes[i + 1 :]]) for i in labels.tolist()])
    C = classes[labels][:, None] - others
    ball = BoundedTensor(inputs, PerturbationLpNorm(norm=2, eps=radius[:, None]))
    found = model.compute_bounds(x=(ball,), C=C, method=method, bound_upper=False)[0]
    return (found.detach() > 0).all(-1)


def searched(proves: Callable[[Tensor], Tensor], low: Tensor, accuracy: float) -> tuple[Tensor, Tensor]:
    """By doubling and halving, the largest radii that are proved and larger ones that are not."""
    high = torch.full_like(low, torch.inf)
    while bool((high > (1 + accuracy) * low).any()):
        trial = torch.where(torch.isinf(high), 2 * low, (low * high).sqrt())
        proved = proves(trial)
        low, high = torch.where(proved, trial, low), torch.where(proved, high, trial)
    return low, high


def main() -> None:
    torch.set_num_threads(int(sys.argv[3]))
    torch.set_default_dtype(torch.float64)  # the optimised bounds have the default precision
    warnings.filterwarnings("ignore")  # of the library, about its own code
    problem = torch.load(sys.argv[1], weights_only=True)
    answer: dict[str, Any] = {"versions": {name: version(name) for name in ("auto_LiRPA", "torch", "numpy")}}
    low = torch.full((len(problem["labels"]),), 1e-3)
    for method in ("CROWN", "CROWN-Optimized"):
        start = time.process_time()
        low, high = searched(partial(leads, problem, method=method), low, problem["accuracy"])
        answer[method] = {"low": low, "high": high, "seconds": time.process_time() - start}
    torch.save(answer, sys.argv[2])
    inputs = problem["inputs"].shape[1]
    middles = tuple(torch.full((inputs, len(bias)), 0.5) for _, bias in problem["layers"][:-1])
    start = time.process_time()
    jacobian = BoundedModule(Jacobian(problem["layers"]), middles)
    slopes = tuple(BoundedTensor(m, PerturbationLpNorm(norm=torch.inf, x_L=0 * m, x_U=2 * m)) for m in middles)
    low, high = (bound.detach() for bound in jacobian.compute_bounds(x=slopes, method="CROWN"))
    answer["jacobian"] = torch.maximum(-low, high).sum(0)
    answer["jacobian_seconds"] = time.process_time() - start
    torch.save(answer, sys.argv[2])


if __name__ == "__main__":
    main()
