r"""A function of the state as a list of ATen operations, and the same list carried out on boxes.

The function is traced once for each number of rows; what the list holds then is an inclusion: for every box it gives
intervals that hold the value and the Jacobian of the function at each of its points, in exact arithmetic, with the
weights as they are stored.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map

from contracting.errors import ContractingError, InputError
from contracting.regions.duals import Dual, Truth, known, structural
from contracting.regions.intervals import Interval, exactly
from contracting.regions.rules import RULES

_ROWS = (16, 1024)  # A list is traced for so many boxes: few waste no time on one box, many cost no time per operation.
_MOST_ENTRIES = 2**18  # Of n coordinates and so many boxes, at most so many derivatives of one number at a time.

class Inclusion:
    """A function g(t, s) on boxes of states and times.

    Args:
        function: (t, states) with t of shape (rows, 1) and states (rows, n) -> (rows, ...), made of torch operations.
        like: a tensor of the dtype and device that the function takes.
        size: n.

    Raises:
        InputError: if the function cannot be traced, or does something that has no inclusion; it names that.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], like: Tensor, size: int):
        self.function, self.like, self.size = function, like, size
        self._traced: dict[int, fx.GraphModule] = {}
        self._check()  # which refuses what has no inclusion before any work

    def __call__(self, states: Interval, times: Interval | None = None) -> Dual:
        """The value (rows, ...) and the slopes (n, rows, ...) over boxes.

        Args:
            states: ends of the boxes, (rows, n).
            times: the same of the times, (rows, 1); None means zero.
        """
        count = len(states.lo)
        if times is None:
            zero = torch.zeros(count, 1, dtype=torch.float64)
            times = Interval(zero, zero)
        most = max(_ROWS[0], min(_ROWS[1], _MOST_ENTRIES // max(1, self.size**2)))
        parts = []
        for start in range(0, count, most):
            rows = slice(start, min(start + most, count))
            here = rows.stop - rows.start
            parts.append(self._run(_cut(states, rows), _cut(times, rows), _ROWS[0] if here <= _ROWS[0] else most))
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _check(self) -> None:
        """Refuse a function whose values at other points than those of the trace are not those of the list.

        Raises:
            InputError: as where numpy computes, or ``.item()`` has made a constant of what depends on the state.
        """
        generator = torch.Generator().manual_seed(0)
        states = torch.rand(_ROWS[0], self.size, generator=generator, dtype=torch.float64).to(self.like)
        times = torch.rand(_ROWS[0], 1, generator=generator, dtype=torch.float64).to(self.like)
        found = self(*(exactly(x) for x in (states, times))).value
        with torch.no_grad():
            value = self.function(times, states).detach().to("cpu", torch.float64)
        # half of the digits: rounding differs by far less, and another function by more
        room = torch.finfo(self.like.dtype).eps ** 0.5 * (1 + value.abs())
        wrong = (value < found.lo - room) | (value > found.hi + room)
        if bool(wrong.any()):
            raise InputError(
                "f(t, s) computes something that is not a torch operation on its arguments (numpy, .item(), .data, a "
                "random number): a proof over a region cannot follow it"
            )

    def _run(self, states: Interval, times: Interval, rows: int) -> Dual:
        count = len(states.lo)
        filled = [x.map(lambda end: end[torch.arange(rows).clamp_max(count - 1)]) for x in (states, times)]
        unit = torch.eye(self.size, dtype=torch.float64)[:, None, :].expand(-1, rows, -1)
        state = Dual(filled[0], Interval(unit, unit))
        found = known(_interpret(self._graph(rows), [Dual(filled[1]), state]))
        if found.value.shape[0] != rows:
            raise InputError(f"f(t, s) must return a row for each row of s, got shape {tuple(found.value.shape)}")
        slope = found.slopes(self.size)
        return Dual(found.value.map(lambda x: x[:count]), slope.map(lambda x: x[:, :count]))

    def _graph(self, rows: int) -> fx.GraphModule:
        if rows not in self._traced:
            self._traced[rows] = _trace(self.function, self.like, rows, self.size)
        return self._traced[rows]

    @cached_property
    def operations(self) -> tuple[str, ...]:
        """The operations the function is made of, by name."""
        nodes = self._graph(_ROWS[0]).graph.nodes
        return tuple(sorted({_name(node.target) for node in nodes if node.op == "call_function"}))


def _cut(interval: Interval, rows: slice) -> Interval:
    return interval.map(lambda x: x[rows])


def _joined(parts: list[Dual]) -> Dual:
    ends = [torch.cat([getattr(part.value, end) for part in parts]) for end in ("lo", "hi")]
    slopes = [torch.cat([getattr(part.slope, end) for part in parts], 1) for end in ("lo", "hi")]
    return Dual(Interval(*ends), Interval(*slopes))


def _trace(function: Callable[..., Tensor], like: Tensor, rows: int, size: int) -> fx.GraphModule:
    # values of no special meaning, all different, at which hardly any function is undefined
    states = torch.linspace(0.1, 0.9, rows * size, dtype=torch.float64).reshape(rows, size).to(like)
    times = torch.full((rows, 1), 0.5).to(like)
    in_parts: Any = {
        op: rule for op, rule in decomposition_table.items() if _name(op) not in RULES and _name(op) not in _MADE
    }

    def of_two(t: Tensor, s: Tensor) -> Tensor:  # whatever else the function may take
        return function(t, s)

    try:
        with torch.no_grad():
            return make_fx(torch.func.functionalize(of_two), decomposition_table=in_parts)(times, states)
    except ContractingError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            "f(t, s) cannot be followed operation by operation, which a proof over a region needs: it must consist of "
            f"torch operations, without branches or numbers that depend on values of s ({reason})"
        ) from error


_MADE = ("empty", "empty_like", "new_empty")


def _name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", target)
    return str(getattr(packet, "__name__", packet))


def _interpret(module: fx.GraphModule, inputs: list[Dual]) -> Any:
    values: dict[fx.Node, Any] = {}
    given = iter(inputs)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "get_attr":
            values[node] = _constant(operator.attrgetter(str(node.target))(module))
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        else:
            args = fx.node.map_arg(node.args, values.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            values[node] = _carried_out(node.target, args, kwargs)
    raise InputError("f(t, s) returns nothing")


def _carried_out(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if target is operator.getitem:
        return args[0][args[1]]
    leaves = tree_leaves((args, dict(kwargs)), is_leaf=lambda x: isinstance(x, (Dual, Truth)))
    name = _name(target)
    if not any(isinstance(leaf, (Dual, Truth)) for leaf in leaves):
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            raise _unknown(name)
        return tree_map(_constant, target(*args, **kwargs))
    if name in _CONSTANTS:
        return _CONSTANTS[name](*args, **kwargs)
    rule = RULES.get(name)
    if rule is None:
        raise _unknown(name)
    try:
        return structural(target, *args, **kwargs) if rule is structural else rule(*args, **kwargs)
    except (TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if isinstance(error, ContractingError):
            raise
        raise _unknown(str(target)) from error  # a variant that the rule does not know


def _unknown(name: str) -> InputError:
    return InputError(
        f"the operation {name!r} in f(t, s) has no inclusion function, so nothing can be proved over a region; write "
        "the field with sums, products, quotients, powers, exp, log, sin, cos, tanh and the like, or give the "
        "operation a rule: contracting.regions.rules.RULES[name]"
    )


def _constant(value: Any) -> Any:
    """A tensor that no state enters: exact if it holds real numbers, and as it is if it holds indices."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return known(value)
    return value.cpu() if isinstance(value, Tensor) else value


def _filled(number: float) -> Callable[..., Dual]:
    return lambda a, *_, **__: known(torch.full(known(a).value.shape, number, dtype=torch.float64))


_CONSTANTS: dict[str, Callable[..., Dual]] = {
    "empty_like": _filled(0.0),
    "fill": lambda a, number: known(torch.full(known(a).value.shape, float(number), dtype=torch.float64)),
    "full_like": lambda a, number, **_: known(torch.full(known(a).value.shape, float(number), dtype=torch.float64)),
    "new_empty": lambda a, shape, **_: known(torch.zeros(shape, dtype=torch.float64)),
    "new_full": lambda a, shape, number, **_: known(torch.full(shape, float(number), dtype=torch.float64)),
    "new_ones": lambda a, shape, **_: known(torch.ones(shape, dtype=torch.float64)),
    "new_zeros": lambda a, shape, **_: known(torch.zeros(shape, dtype=torch.float64)),
    "ones_like": _filled(1.0),
    "zeros_like": _filled(0.0),
}
"""What only asks for the shape of a tensor."""
