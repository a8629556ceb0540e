"""A Sequential around an equilibrium layer, as one map: which modules are linear, and as which matrices."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from contracting.certificates.definite import UNIT
from contracting.errors import InputError
from equilibrium.layers import EquilibriumLayer
from equilibrium.weights import NetworkWeights

Core = EquilibriumLayer | NetworkWeights
Model = Core | nn.Sequential

_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_NORMALISATION = (nn.BatchNorm1d, nn.BatchNorm2d)
_REMEDY = (
    "from_sequential(model) makes one layer of several, of perceptrons and of activations between; or certify the "
    "equilibrium layer by itself, with linear maps around it as preceding= and following="
)


def parts(model: Model) -> tuple[list[nn.Module], Core, list[nn.Module]]:
    """The linear modules before the one equilibrium layer (or explicit weights), it, and those after it.

    Raises:
        InputError: if there is no layer, more than one, or a module that is not linear for every single row.
    """
    if isinstance(model, EquilibriumLayer | NetworkWeights):
        return [], model, []
    if not isinstance(model, nn.Sequential):
        raise InputError(
            f"model must be an EquilibriumLayer, Weights or an nn.Sequential that contains a layer, got "
            f"{type(model).__name__}"
        )
    modules = list(_flat(model))
    places = [k for k, module in enumerate(modules) if isinstance(module, EquilibriumLayer)]
    if len(places) != 1:
        raise InputError(f"model must contain one equilibrium layer, it has {len(places)}: {_REMEDY}")
    core = modules[places[0]]
    assert isinstance(core, EquilibriumLayer)
    before, after = modules[: places[0]], modules[places[0] + 1 :]
    for module in (*before, *after):
        _check_linear(module)
    return before, core, after


def _flat(model: nn.Sequential) -> list[nn.Module]:
    flat: list[nn.Module] = []
    for module in model:
        flat += _flat(module) if isinstance(module, nn.Sequential) else [module]
    return flat


def _check_linear(module: nn.Module) -> None:
    name = type(module).__name__
    if isinstance(module, (*_DROPOUT, *_NORMALISATION)):
        if module.training:
            raise InputError(f"model must be in evaluation mode, its {name} is in training: call model.eval()")
        if isinstance(module, _NORMALISATION) and module.running_var is None:
            raise InputError(f"model has a {name} without running statistics, which is no linear map: {_REMEDY}")
    elif isinstance(module, nn.Flatten | nn.Unflatten):
        first = module.start_dim if isinstance(module, nn.Flatten) else module.dim
        if first == 0:
            raise InputError(f"model has a {name} of the batch dimension, which mixes rows: start at dimension 1")
    elif not isinstance(module, nn.Linear | nn.Identity):
        raise InputError(f"model contains a {name}, which is not known to be linear: {_REMEDY}")


def matrix_of(module: nn.Module, size: int) -> tuple[Tensor, Tensor] | None:
    """A linear module as a matrix and an entrywise bound of its rounding, float64; None where it changes no value.

    Args:
        module: one that ``parts`` gave.
        size: entries of a row on the side of the equilibrium layer.
    """
    if isinstance(module, nn.Linear):
        weight = module.weight.detach().to("cpu", torch.float64)
        return weight, torch.zeros_like(weight)
    if isinstance(module, _NORMALISATION):
        assert module.running_var is not None
        scale = (module.running_var.detach().to("cpu", torch.float64) + module.eps).rsqrt()
        if module.weight is not None:
            scale = scale * module.weight.detach().to("cpu", torch.float64)
        if size % len(scale):
            raise InputError(f"model normalises {len(scale)} features where the map next to it has {size}")
        matrix = torch.diag(scale.repeat_interleave(size // len(scale)))
        return matrix, 6 * UNIT * matrix.abs()
    return None
