"""One rule for each operation of torch that a field may be made of, by its name in ATen."""

from __future__ import annotations

import math

import torch

from contracting.regions.duals import (
    Dual,
    Rule,
    add,
    add_in_logarithms,
    add_matmul,
    apply,
    at_least,
    both,
    clamped,
    convert,
    divide,
    either,
    equal,
    greater,
    inner,
    larger,
    largest,
    matmul,
    matrix_vector,
    mean,
    multiply,
    opposite,
    overwritten,
    power,
    reshaped,
    select,
    smaller,
    smallest,
    step,
    structural,
    subtract,
    total,
    variance,
)
from contracting.regions.functions import FUNCTIONS, elu, leaky_relu, softplus
from contracting.regions.intervals import exactly, widened


def _scalar(name: str) -> Rule:
    return lambda a: apply(FUNCTIONS[name], a)


def _logarithm(base: float) -> Rule:
    # the logarithm of the base is a number of the library, too
    natural = exactly(math.log(base)).lo
    scale = Dual(widened(natural, natural))
    return lambda a: divide(apply(FUNCTIONS["log"], a), scale)


_STRUCTURAL = (
    "alias broadcast_in_dim cat clone collapse_view constant_pad_nd contiguous detach diag_embed diagonal "
    "diagonal_scatter expand flip gather index index_select lift_fresh lift_fresh_copy movedim narrow permute "
    "repeat roll select select_scatter slice slice_scatter split split_with_sizes squeeze stack t transpose tril "
    "triu unbind unflatten unfold unsqueeze"
).split()

RULES: dict[str, Rule] = {
    **{name: _scalar(name) for name in FUNCTIONS},
    "_reshape_alias": lambda a, shape, *_: reshaped(a, shape),
    "_to_copy": convert,
    "_unsafe_view": reshaped,
    "add": add,
    "addmm": add_matmul,
    "amax": largest,
    "amin": smallest,
    "baddbmm": add_matmul,
    "bitwise_and": both,
    "bitwise_not": opposite,
    "bitwise_or": either,
    "bmm": matmul,
    "ceil": step(torch.ceil),
    "clamp": clamped,
    "clamp_max": lambda a, high: clamped(a, None, high),
    "clamp_min": lambda a, low: clamped(a, low, None),
    "convert_element_type": lambda a, dtype: convert(a, dtype=dtype),
    "copy": overwritten,
    "div": divide,
    "dot": inner,
    "elu": lambda a, alpha=1.0, scale=1.0, input_scale=1.0: apply(elu(alpha, scale, input_scale), a),
    "eq": equal,
    "erfc": lambda a: subtract(1.0, apply(FUNCTIONS["erf"], a)),
    "exp2": lambda a: power(2.0, a),
    "floor": step(torch.floor),
    "ge": at_least,
    "gt": greater,
    "hardtanh": lambda a, low=-1.0, high=1.0: clamped(a, low, high),
    "le": lambda a, b: at_least(b, a),
    "leaky_relu": lambda a, slope=0.01: apply(leaky_relu(slope), a),
    "log10": _logarithm(10.0),
    "log2": _logarithm(2.0),
    "logaddexp": add_in_logarithms,
    "logical_and": both,
    "logical_not": opposite,
    "logical_or": either,
    "lt": lambda a, b: greater(b, a),
    "maximum": larger,
    "mean": mean,
    "minimum": smaller,
    "mm": matmul,
    "mul": multiply,
    "mv": matrix_vector,
    "ne": lambda a, b: opposite(equal(a, b)),
    "pow": power,
    "reshape": reshaped,
    "round": step(torch.round),
    "rsub": lambda a, b, alpha=1: subtract(b, a, alpha=alpha),
    "sgn": step(torch.sign),
    "sign": step(torch.sign),
    "softplus": lambda a, beta=1.0, threshold=20.0: apply(softplus(beta, threshold), a),
    "sub": subtract,
    "sum": total,
    "trunc": step(torch.trunc),
    "var": variance,
    "view": reshaped,
    "where": select,
}
"""By the name of the operation in ATen, without its overload."""
RULES |= {name: structural for name in _STRUCTURAL}
