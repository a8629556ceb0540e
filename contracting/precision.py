"""Full precision inside an autocast region."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from contracting import checks

_AS_IT_IS: AbstractContextManager[Any] = nullcontext()


def under_autocast(device: str) -> bool:
    """Whether an autocast region is open for this kind of device; there is none for tensors without values."""
    return device != "meta" and torch.is_autocast_enabled(device)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Autocast switched off where it is on: half precision would take the certificates along with the digits."""
    device = x.device.type
    return torch.autocast(device_type=device, enabled=False) if under_autocast(device) else _AS_IT_IS


def as_computed(name: str, x: Any, owner: str, like: Tensor) -> Tensor:
    """x as a module computes with it: what an autocast region has brought to half precision gets the module's dtype.

    Args:
        name: of x, for what is refused.
        x: the input of a module.
        owner: name of the module, for what is refused.
        like: a tensor of the module.

    Raises:
        InputError: if x is no floating-point tensor, is of another dtype or device, or if the module holds no values.
    """
    if isinstance(x, Tensor) and x.dtype == like.dtype and x.device == like.device and not like.is_meta:
        return x  # as nearly always
    device = checks.with_values(owner, like).device.type
    x = checks.floating_tensor(name, x)
    if under_autocast(device) and x.dtype == torch.get_autocast_dtype(device):
        x = x.to(like.dtype)
    return checks.same_kind(name, x, owner, like)
