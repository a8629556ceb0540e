"""Activations by name, by their class, and by what torch calls them: the one place where one is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from contracting.activations.base import Activation
from contracting.activations.catalogue import ADMISSIBLE, ELU, HardTanh, LeakyReLU, Softplus, Softshrink
from contracting.errors import InputError

_NAMED = {type(activation).__name__.lower(): activation for activation in ADMISSIBLE}
# Torch activations that no f has as prox, by the extremes of their slope, rounded outward to four digits.
INADMISSIBLE = {
    "gelu": (-0.129, 1.129),
    "silu": (-0.0999, 1.0999),
    "mish": (-0.1126, 1.0885),
    "hardswish": (-0.5, 1.5),
    "selu": (0.0, 1.7581),
}
# Admissible ones that have no class here.
_UNAVAILABLE = ("celu", "logsigmoid", "tanhshrink")


def _from_softplus(module: nn.Softplus) -> Softplus:
    if module.threshold < 20:
        raise InputError(
            f"Softplus(threshold={module.threshold:g}) is not monotone: it jumps down to the identity there, so it is "
            "no proximal operator; keep the default threshold of 20"
        )
    return Softplus(beta=module.beta)


_FROM_MODULE: dict[type, Callable[[Any], Activation]] = {
    nn.LeakyReLU: lambda module: LeakyReLU(negative_slope=module.negative_slope),
    nn.Hardtanh: lambda module: HardTanh(low=module.min_val, high=module.max_val),
    nn.Softplus: _from_softplus,
    nn.ELU: lambda module: ELU(alpha=module.alpha),
    nn.Softshrink: lambda module: Softshrink(threshold=module.lambd),
}


def activation_named(name: str) -> Activation:
    """The activation of this name with its default settings; case, ``_`` and ``-`` do not matter.

    Raises:
        InputError: if the name is unknown or means no proximal operator; the message gives the mathematical reason.
    """
    key = name.lower().replace("_", "").replace("-", "")
    if key in INADMISSIBLE:
        low, high = INADMISSIBLE[key]
        reason = f"monotone: its slope falls to {low:g}" if low < 0 else f"nonexpansive: its slope reaches {high:g}"
        raise InputError(f"{name} is not {reason}, so it is no proximal operator; use ReLU, Softplus or Tanh")
    if key not in _NAMED:
        problem = "admissible but not available" if key in _UNAVAILABLE else "unknown"
        raise InputError(f"activation {name!r} is {problem}; use one of {', '.join(_NAMED)}")
    return _NAMED[key]


def register_activation(activation: Activation) -> Activation:
    """Let ``activation_named`` know an activation of your own by the name of its class as well; it is returned.

    Where torch has one of that name, ``as_activation`` takes that for it: ``nn.Tanhshrink()`` for ``Tanhshrink()``.

    Raises:
        InputError: if it is no Activation, or its name is taken.
    """
    name = type(activation).__name__.lower()
    if not isinstance(activation, Activation) or name in {*_NAMED, *INADMISSIBLE}:
        raise InputError(f"activation must be an Activation of a new name, got {activation!r}")
    _NAMED[name] = activation
    return activation


def as_activation(value: Any) -> Activation:
    """The activation meant by an instance or class of an activation or of torch.nn, or by a function of torch.

    Args:
        value: such as ``Tanh()``, ``Tanh``, ``Mine``, ``nn.LeakyReLU(0.1)``, ``torch.tanh`` or ``F.relu``.

    Raises:
        InputError: if it is unknown or no proximal operator; the message names it and gives the mathematical reason.
    """
    if isinstance(value, Activation):
        return value
    if isinstance(value, type) and issubclass(value, Activation):
        try:
            return value()
        except TypeError as error:
            raise InputError(f"activation {value.__name__} cannot be made without settings: {error}") from error
    if type(value) in _FROM_MODULE:
        return _FROM_MODULE[type(value)](value)
    # The identity test keeps strangers with a familiar name out, such as a subclass of nn.ReLU with its own forward.
    known = type(value) if isinstance(value, nn.Module) else value
    name = getattr(known, "__name__", "")
    if any(known is getattr(home, name, None) for home in (nn, torch, F) if name):
        return activation_named(name)
    raise InputError(
        f"activation must be an Activation, a module of torch.nn or a function of torch, got {value!r}; admissible are "
        f"{', '.join(_NAMED)} (activation_named takes such a name)"
    )
