"""What would stop an accelerator, seen on any machine: values that come to the host, and arrays that leave it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import contracting

_LIBRARY = Path(contracting.__file__).parent
_READS = {
    Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.numpy, Tensor.__bool__, Tensor.__float__, Tensor.__int__,
    Tensor.__index__, Tensor.__array__, Tensor.nonzero, torch.nonzero, torch.equal, Tensor.equal, torch.allclose,
    torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique, torch.where,
}  # fmt: skip
_WRITES: set[Callable[..., Any]] = {torch.tensor, torch.from_numpy, torch.as_tensor}
# These wait for the device before they know the shape of their result, or to see whether they failed.
_WAITS = {
    torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.equal,
    torch.ops.aten._linalg_check_errors,
}  # fmt: skip


class Traffic(TorchFunctionMode):
    """Counts the calls that on an accelerator would wait for it, or move an array there, with the lines that did.

    A result that has come to the host may be read there as often as one likes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._host: list[Tensor] = []
        self._inner = _Waits(self)
        self._calling = False

    def note(self, name: str) -> None:
        ours = [f for f in traceback.extract_stack() if f.filename.startswith(str(_LIBRARY))]
        where = f"{Path(ours[-1].filename).relative_to(_LIBRARY)}:{ours[-1].lineno}" if ours else "a test"
        self.seen.append(f"{name} in {where}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counted = func in _READS or func in _WRITES
        if func is torch.where and len(args) > 1:  # with one argument it is nonzero
            counted = False
        if not counted or any(args[0] is known for known in self._host):
            return func(*args, **(kwargs or {}))
        self.note(func.__name__)
        self._calling = True
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self._calling = False
        if func is Tensor.cpu:
            self._host.append(result)
        return result

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._inner.__exit__(*exception)


class _Waits(TorchDispatchMode):
    def __init__(self, traffic: Traffic):
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        masks = func.overloadpacket is torch.ops.aten.index and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if (masks or func.overloadpacket in _WAITS) and not self.traffic._calling:
            self.traffic.note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))
