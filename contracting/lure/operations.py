"""The table of operations that a field may be made of, by the names that torch calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from contracting.activations.base import Activation
from contracting.activations.blockwise import joined
from contracting.activations.catalogue import Arctan, HardTanh, LeakyReLU
from contracting.activations.names import as_activation
from contracting.activations.sheared import Sheared
from contracting.errors import InputError
from contracting.lure.tracing import Call, Traced, neurons

# What may be asked of a tensor without a look at its entries.
_METADATA = set("""
    shape dtype device ndim layout requires_grad is_cuda is_leaf is_sparse is_quantized is_meta is_nested is_mkldnn
    is_complex is_floating_point is_contiguous dim size stride numel nelement __len__ element_size is_inference
    get_device names grad_fn
""".split())
# What makes a constant of the shape of a tensor.
_CONSTANT = set("zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_tensor".split())
# What changes the type or the place of a tensor, and no value but by rounding.
_SAME = set("to float double type type_as clone contiguous cpu cuda alias".split())
# What is affine in all tensors that it takes together.
_AFFINE = set("""
    add sub subtract rsub __add__ __radd__ __sub__ __rsub__ neg negative positive __neg__ __pos__ cat concat concatenate
    stack hstack vstack dstack column_stack __getitem__ sum mean reshape view reshape_as view_as flatten unflatten ravel
    unsqueeze squeeze transpose swapaxes swapdims t T mT permute movedim moveaxis chunk split split_with_sizes
    tensor_split unbind expand expand_as broadcast_to select narrow index_select take_along_dim gather flip roll repeat
    tile repeat_interleave _with_entries diff cumsum tril triu diag_embed diagonal pad atleast_2d
""".split())
# What is affine in one tensor if the others are constants.
_PRODUCT = set("""
    mul multiply __mul__ __rmul__ matmul __matmul__ __rmatmul__ mm mv bmm linear addmm addmv baddbmm einsum tensordot
    dot inner outer vecdot kron cross bilinear batch_norm dropout where masked_fill lerp conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
""".split())
_QUOTIENT = set("div divide true_divide __truediv__".split())
_ASSIGNMENTS = {name: name.replace("__i", "__") for name in ("__iadd__", "__isub__", "__imul__", "__itruediv__")}
_ASSIGNMENTS["__setitem__"] = "_with_entries"
_TRAINING = {"dropout": 2, "batch_norm": 5}  # the position of the argument that says so
# Activations with the module or class that holds their settings, in the order in which the function takes them.
_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU, "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid, "softsign": nn.Softsign,
    "softshrink": nn.Softshrink, "atan": Arctan, "arctan": Arctan,
}  # fmt: skip
_SHEARED = ("gelu", "silu", "mish", "hardswish", "selu", "sin", "cos", "erf")

Reader = Callable[..., Any]


def _rnn(function: Callable[[Tensor], Tensor]) -> Reader:
    def cell(x: Any, h: Any, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None) -> Tensor:
        return function(F.linear(x, w_x, b_x) + F.linear(h, w_h, b_h))

    return cell


def _clamp(v: Traced, min: Any = None, max: Any = None) -> Any:
    if any(isinstance(end, Tensor) for end in (min, max)):
        raise InputError("the field cannot be read as a Lur'e system: clamp has limits that are tensors; take numbers")
    if min is None and max is None:
        return v
    if min is None:
        return max - F.relu(max - v)
    return min + F.relu(v - min) if max is None else neurons(v, HardTanh(low=float(min), high=float(max)))


def _prelu(v: Traced, weight: Tensor) -> Traced:
    leaks = [float(leak) for leak in weight.detach().flatten()]
    leaks = leaks * v.plain.numel() if len(leaks) == 1 else leaks
    return neurons(v, joined([(LeakyReLU(negative_slope=leak), 1) for leak in leaks]))


def _gelu(v: Traced, approximate: str = "none") -> Any:
    return _sheared("gelu" if approximate == "none" else "gelu_tanh", v)


def _sheared(name: str, v: Any) -> Any:
    activation = Sheared(function=name)
    low, high = activation.ends
    return low * v + (high - low) * neurons(v, activation)


# What is made of others.
_READERS: dict[Any, Reader] = {
    "rnn_tanh_cell": _rnn(torch.tanh),
    "rnn_relu_cell": _rnn(torch.relu),
    "abs": lambda v: F.relu(v) + F.relu(-v),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda v, min: _clamp(v, min),
    "clamp_max": lambda v, max: _clamp(v, None, max),
    "maximum": lambda a, b: b + F.relu(a - b),
    "minimum": lambda a, b: b - F.relu(b - a),
    "celu": lambda v, alpha=1.0, inplace=False: alpha * F.elu(v / alpha),
    "log_sigmoid": lambda v: -F.softplus(-v),
    "logsigmoid": lambda v: -F.softplus(-v),
    "tanhshrink": lambda v: v - torch.tanh(v),
    "prelu": _prelu,
    "gelu": _gelu,
    "__iter__": lambda v: iter(v.unbind(0)),
}
_READERS |= {"__abs__": _READERS["abs"], "absolute": _READERS["abs"]}
_DIVIDING = ("layer_norm", "softmax", "normalize", "reciprocal", "__rtruediv__", "__rdiv__")
_WHY = {
    **dict.fromkeys(_DIVIDING, "it divides by a function of the state"),
    "gru_cell": "its gates multiply functions of the state; take nn.RNNCell",
    "lstm_cell": "its gates multiply functions of the state; take nn.RNNCell",
    "detach": "it hides from autograd how the field depends on the state",
    "exp": "its slope has no bound",
    "square": "its slope has no bound",
    "pow": "its slope has no bound",
    "__pow__": "its slope has no bound",
}


def register_reader(function: Callable[..., Any], reader: Reader) -> Reader:
    """Let fields be read that call a function of your own, or one of torch's that is not known yet; reader is returned.

    Args:
        function: one of torch's, or your own that hands itself over by ``torch.overrides.handle_torch_function``.
        reader: takes the same arguments, of which some are traced; returns the result, made of what can be read
            (linear layers, sums, activations) or of new neurons by ``contracting.lure.tracing.neurons``.

    Raises:
        InputError: if one of them cannot be called.
    """
    for name, value in (("function", function), ("reader", reader)):
        if not callable(value):
            raise InputError(f"{name} must be a function, got {value!r}")
    _READERS[function] = reader
    return reader


def carried_out(call: Call) -> Any:
    """The result of an operation on what is traced.

    Raises:
        InputError: if it is not in the table, by its name.
    """
    name = call.name
    if name in _METADATA:
        return call.plain
    if call.kwargs.get("out") is not None:
        raise call.refusal("as it writes to a given tensor")
    if _assigns(call, name):
        return _assigned(call, name)
    if name in _CONSTANT or not call.varying:
        return call.constant()
    if name in _SAME and all(argument.form is not None for argument in call.traced):
        return call.unchanged()
    if _is_affine(call, name):
        return call.affinely()
    if call.stateless:
        return call.anyhow()
    reader = _READERS.get(call.func, _READERS.get(name))
    if reader is not None:
        return reader(*call.args, **call.kwargs)
    if name in _SHEARED:
        return _sheared(name, call.args[0])
    if name in _ACTIVATIONS:
        return neurons(call.args[0], _activation(call))
    raise call.refusal(_reason(call, name))


Traced.carried_out = staticmethod(carried_out)


def _is_affine(call: Call, name: str) -> bool:
    """Whether it is affine in all that is traced together."""
    varying = call.varying
    if any(argument.form is None for argument in varying):
        return False
    if name in ("dropout", "batch_norm"):
        training = call.kwargs.get("training", call.args[_TRAINING[name]] if len(call.args) > _TRAINING[name] else True)
        if training:
            raise call.refusal("as it is in training mode, where rows see each other or chance; call module.eval()")
    if name in _QUOTIENT:
        return len(varying) == 1 and varying[0] is call.args[0]
    return name in _AFFINE or (name in _PRODUCT and len(varying) == 1)


def _assigns(call: Call, name: str) -> bool:
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in _ASSIGNMENTS or bool(call.kwargs.get("inplace") and name in _ACTIVATIONS)


def _assigned(call: Call, name: str) -> Traced:
    """What an operation does that overwrites its first argument: this is then what a new tensor would have been."""
    target = call.args[0]
    if not isinstance(target, Traced):
        raise call.refusal("as it writes what depends on the state into a constant: begin with torch.zeros_like(s)")
    if name == "__setitem__":
        made = carried_out(Call(_with_entries, call.args, call.kwargs))
    else:
        name = _ASSIGNMENTS.get(name, name.rstrip("_") if name.endswith("_") else name)
        function = next((f for home in (Tensor, F) if (f := getattr(home, name, None)) is not None), None)
        if function is None:
            raise call.refusal("as it changes a tensor in place")
        made = carried_out(Call(function, call.args, {k: v for k, v in call.kwargs.items() if k != "inplace"}))
    if made.plain.shape != target.plain.shape:
        raise call.refusal("as it changes the shape of a tensor in place")
    target.plain, target.form, target.recipe = made.plain, made.form, made.recipe
    return target


def _with_entries(target: Tensor, index: Any, value: Any) -> Tensor:
    """A copy in which some entries are others."""
    copied = target.clone()
    copied[index] = value
    return copied


def _activation(call: Call) -> Activation:
    settings = {name: value for name, value in call.kwargs.items() if name not in ("inplace", "input")}
    return as_activation(_ACTIVATIONS[call.name](*call.args[1:], **settings))


def _reason(call: Call, name: str) -> str:
    if name in _WHY:
        return f"as {_WHY[name]}"
    if name in _PRODUCT | _QUOTIENT and len(call.varying) > 1:
        if any(argument.recipe is not None for argument in call.varying):
            return "as it multiplies the state by a function of time or of the input, which would move the matrices"
        return "as it multiplies functions of the state"
    return "as it is neither affine nor an activation of bounded slope"
