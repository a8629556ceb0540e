"""Refuse bad arguments before any work starts, by argument name and with the remedy."""

from __future__ import annotations

import importlib
import math
import numbers
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from contracting.errors import InputError, MissingExtraError


def floating_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a real floating-point tensor, else raise InputError."""
    if not isinstance(value, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, got {type(value).__name__}; use torch.as_tensor(...)")
    if value.is_complex():
        raise InputError(
            f"{name} must be real, got {value.dtype}; write a complex state of n entries as a real one of 2n, "
            f"torch.view_as_real({name}).flatten(-2), and split it again with torch.view_as_complex"
        )
    if not value.is_floating_point():
        raise InputError(f"{name} must be floating point, got {value.dtype}; convert it with {name}.to(torch.float32)")
    return value


def last_size(name: str, value: Tensor, size: int) -> Tensor:
    """Return ``value`` if its last dimension has ``size`` entries, else raise InputError."""
    if value.ndim == 0 or value.shape[-1] != size:
        raise InputError(f"{name} must have {size} entries in its last dimension, got shape {tuple(value.shape)}")
    return value


def shape(name: str, value: Tensor, expected: tuple[int, ...]) -> Tensor:
    """Return ``value`` if its shape is ``expected``, else raise InputError."""
    if tuple(value.shape) != expected:
        raise InputError(f"{name} must have shape {tuple(expected)}, got {tuple(value.shape)}")
    return value


def same_kind(name: str, value: Tensor, reference_name: str, reference: Tensor) -> Tensor:
    """Return ``value`` if it shares dtype and device with ``reference``, else raise InputError."""
    if value.dtype != reference.dtype:
        raise InputError(
            f"{name} has dtype {value.dtype} but {reference_name} has {reference.dtype}; "
            f"convert one of them, for example {name}.to({reference.dtype})"
        )
    if value.device != reference.device:
        raise InputError(
            f"{name} is on {value.device} but {reference_name} is on {reference.device}; "
            f"move one of them, for example {name}.to({str(reference.device)!r})"
        )
    return value


def with_values(name: str, value: Tensor) -> Tensor:
    """Return ``value`` unless it is on the meta device, where tensors have shapes and no values; then InputError."""
    if value.is_meta:
        raise InputError(
            f"{name} is on the meta device, which holds shapes and no values; move the module by "
            "to_empty(device='cpu'), then call reset_parameters() of its parameterization or load a state_dict"
        )
    return value


def on_trust(*values: Tensor) -> bool:
    """Whether nobody can look at the entries: while a graph is traced, or under a transformation of torch.func."""
    # torch has no public question for the latter
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return torch.compiler.is_compiling() or any(map(wrapped, values))


def finite(name: str, value: Tensor) -> Tensor:
    """Return ``value`` if every entry is finite, else raise InputError; see ``on_trust``."""
    if on_trust(with_values(name, value)):
        return value
    if not bool((value.detach().abs() < math.inf).all()):
        bad = int((~torch.isfinite(value.detach())).sum())
        raise InputError(f"{name} has {bad} entries that are NaN or infinite; it must be finite")
    return value


def positive_tensor(name: str, value: Tensor) -> Tensor:
    """Return ``value`` if every entry is finite and > 0, else raise InputError; see ``on_trust``."""
    if on_trust(with_values(name, value)):
        return value
    if value.numel() == 0:
        return value
    least, largest = value.detach().aminmax()
    low, high = float(least), float(largest)
    if not (low > 0 and high < math.inf):
        finite(name, value)
        raise InputError(f"{name} must be positive, its smallest entry is {low:.3g}")
    return value


def number(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
) -> float:
    """Return ``value`` as a float inside the interval (bounds open where asked), else raise InputError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number, got {type(value).__name__}")
    x = float(value)
    too_low = x <= low if low_open else x < low
    too_high = x >= high if high_open else x > high
    if math.isnan(x) or too_low or too_high:
        interval = f"{'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}"
        raise InputError(f"{name} must lie in {interval}, got {x:g}")
    return x


def positive_number(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is finite and > 0, else raise InputError."""
    return number(name, value, low=0.0, low_open=True, high=math.inf, high_open=True)


def whole_number(name: str, value: Any, *, low: int = 1) -> int:
    """Return ``value`` as an int that is at least ``low``, else raise InputError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < low:
        raise InputError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return int(value)


def seed(name: str, value: Any) -> int:
    """Return ``value`` as an int that any random generator takes, 0 ≤ value < 2⁶³, else raise InputError."""
    if whole_number(name, value, low=0) >= 2**63:
        raise InputError(f"{name} must be a whole number below 2**63, got {value}; take a smaller one, such as 0")
    return int(value)


def floating_dtype(name: str, dtype: torch.dtype | None) -> torch.dtype | None:
    """Return ``dtype`` if it is a floating-point type, or None for the default one, else raise InputError."""
    if dtype is not None and not dtype.is_floating_point:
        raise InputError(f"{name} must be a floating-point type, got {dtype}; use torch.float32 or torch.float64")
    return dtype


def extra(module: str, extra_name: str, purpose: str) -> ModuleType:
    """Import an optional module, or raise MissingExtraError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {module!r}, which is not installed: "
            f"pip install 'contracting-equilibria[{extra_name}]'"
        ) from error
