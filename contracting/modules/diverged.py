"""Why a module has no matrices: which of its parameters are not numbers any more, or how large they have become."""

from __future__ import annotations

import math

from torch import nn

from contracting.errors import InputError


def lost_parameters(module: nn.Module) -> list[str]:
    """The names of the parameters that have entries that are NaN or infinite."""
    return [name for name, size in _sizes(module).items() if not math.isfinite(size)]


def diverged(module: nn.Module, error: Exception) -> InputError:
    """Why there are no weights, by the names of the parameters."""
    sizes, lost = _sizes(module), lost_parameters(module)
    largest = ", ".join(f"{name} {sizes[name]:.1e}" for name in sorted(sizes, key=lambda name: -sizes[name]))
    cause = f"{', '.join(lost)}: NaN or infinite entries" if lost else f"{error}; the largest entries are {largest}"
    return InputError(
        f"the parameters make no weights. {cause}. Training has diverged, as mostly from a learning rate that is too "
        "large: go on from earlier parameters with a smaller one, or clip the gradients"
    )


def _sizes(module: nn.Module) -> dict[str, float]:
    """The largest entry of each parameter."""
    parameters = module.named_parameters()
    return {name: float(values.detach().abs().max()) for name, values in parameters if values.numel()}
