r"""Fields read as Lur'e systems: ``lure_of(NeuralFlow(module))`` gives the matrices that the module is made of."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.activations.base import Activation
from contracting.activations.blockwise import joined
from contracting.activations.catalogue import Identity
from contracting.errors import InputError, PreconditionError
from contracting.flows.fields import InputFlow, NeuralFlow, VectorField, rounded_down
from contracting.lure.flow import LureFlow
from contracting.lure.tracing import Block, Form, Given, Neurons, Source, Traced, needed, source
from contracting.metrics import WeightedL2
from contracting.types import Time

_LARGEST = 512  # states of more entries are not guessed: each size that is tried runs the field once
_ROWS = 5  # random states at which a reading is compared with its field
# A reading that is wrong differs by far more than this share, and the solves in both by less (their tolerances are 1e-8
# in float64 and 1e-5 in float32).
_SAME = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """y = As + Bw + B₂u + e with w = σ(Cs + Dw + D₁₂u + q): a function of s that was read, in float64.

    Attributes:
        A: (p, n), and the other matrices and offsets as for ``LureFlow``.
        layers: sizes of the layers, in whose order the neurons are.
        metric: Λ in which those layers that are implicit are well-posed, where one is.
        sources: what u is made of, in order.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    B2: Tensor
    D12: Tensor
    e: Tensor
    q: Tensor
    activation: Activation
    layers: tuple[int, ...]
    metric: WeightedL2 | None
    sources: tuple[Source, ...]


def read(function: Callable[[Traced], Tensor], state: Tensor) -> Reading:
    """A function of rows, made of affine operations and activations, as matrices.

    Args:
        function: of (1, n); everything else that it depends on is a constant, or a ``source``.
        state: one row to run it on, (1, n).

    Raises:
        InputError: if an operation is neither, by its name.
    """
    start = source(state, given=False)
    value = function(start)
    checks.floating_tensor("the value of the field", value)
    form = value.form if isinstance(value, Traced) else Form(value.detach().to(torch.float64), {})
    if form is None or value.ndim != 2 or len(value) != 1:
        raise InputError(f"the field must give a row for each row of the state, got shape {tuple(value.shape)}")
    assert start.form is not None
    (own,) = start.form.parts
    return _assembled(form, own)


def _assembled(form: Form, state: Block) -> Reading:
    blocks = list(needed([form]))
    sources = tuple(block for block in blocks if isinstance(block, Source) and block is not state)
    groups = list(_layers([block for block in blocks if isinstance(block, Neurons)]))
    cells = [cell for group in groups for cell in group]

    def row(part: Form, over: list[Any] | tuple[Any, ...]) -> Tensor:
        empty = part.offset.new_zeros(part.offset.numel(), 0)
        return torch.cat([empty, *(part.matrix(block) for block in over)], 1)

    def rows(over: list[Any] | tuple[Any, ...], own: bool = False) -> Tensor:
        made = []
        for cell in cells:
            parts = [cell.weight if own and block is cell else None for block in over]
            matrices = [
                cell.feed.matrix(block) if weight is None else weight.to(cell.feed.offset)
                for block, weight in zip(over, parts, strict=True)
            ]
            made.append(torch.cat([form.offset.new_zeros(cell.size, 0), *matrices], 1))
        return torch.cat([form.offset.new_zeros(0, sum(block.size for block in over)), *made])

    lam = [torch.ones(cell.size) if cell.metric is None else cell.metric.weights.detach() for cell in cells]
    implicit = any(cell.weight is not None for cell in cells)
    return Reading(
        A=form.matrix(state),
        B=row(form, cells),
        C=rows([state]),
        D=rows(cells, own=True),
        B2=row(form, sources),
        D12=rows(sources),
        e=form.offset.flatten(),
        q=torch.cat([form.offset.new_zeros(0), *(cell.feed.offset.flatten() for cell in cells)]),
        activation=joined([(cell.activation, cell.size) for cell in cells]) if cells else Identity(),
        layers=tuple(sum(cell.size for cell in group) for group in groups),
        metric=WeightedL2(torch.cat([part.to(form.offset) for part in lam])) if implicit else None,
        sources=sources,
    )


def _layers(cells: list[Neurons]) -> Iterator[list[Neurons]]:
    """The fewest layers in which neurons stand after all that they see; implicit ones have a layer of their own."""
    depth: dict[Block, int] = {}
    for cell in cells:
        depth[cell] = 1 + max((depth.get(block, 0) for block in cell.feed.parts), default=0)
    for _, group in itertools.groupby(sorted(cells, key=lambda cell: depth[cell]), lambda cell: depth[cell]):
        members = list(group)
        explicit = [cell for cell in members if cell.weight is None]
        yield from ([explicit] if explicit else [])
        yield from ([cell] for cell in members if cell.weight is not None)


def lure_of(
    field: VectorField | nn.Module | Callable[..., Tensor],
    *,
    state: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> LureFlow:
    """A field as a Lur'e system: the same values, from matrices that can be certified.

    The field runs once, and what it does to the state is followed: linear layers, sums, slices and concatenations,
    activations of bounded slope (those of the library, GELU, SiLU, Mish, sin, …), residual and skip connections,
    ``nn.RNNCell``, dropout and batch normalisation in evaluation mode, equilibrium layers. Time, and the x of an
    ``InputFlow``, may do anything that does not touch the matrices: they become the input u. The matrices are those of
    the parameters as they are now, on their graph; after a training step the field must be read again.

    Args:
        field: a ``NeuralFlow``, ``InputFlow`` or other vector field, or the f(t, s) or f(s) of a NeuralFlow.
        state: a state, (n,) or (batch, n), which says its size, dtype and device; found by trial if None.
        dtype: of the matrices; that of the field if None. They are computed in float64.

    Raises:
        InputError: if an operation cannot be read, by its name and with what to do; if the size of the state cannot be
            found; or if the reading differs from the field at random states, as where rows see each other.
    """
    flow = field if isinstance(field, VectorField) else NeuralFlow(field)
    if isinstance(flow, LureFlow):
        return flow if dtype is None else flow.to(flow.A.new_zeros((), dtype=dtype))
    with _as_written():
        example = _example(flow) if state is None else _row(state)
        given = _Given.of(flow, example)
        found, like = _flow(read(given.field, example), given), example.new_zeros(())
        _compare(found.to(like), flow, example)
    return found.to(like if dtype is None else like.to(dtype))


def _as_written() -> AbstractContextManager[Any]:
    """Compiled modules run as they were written: a compiler sees no operations of what is traced here."""
    stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    return nullcontext() if stance is None else stance("force_eager")


@dataclass(frozen=True, eq=False)
class _Given:
    """A field with what it is given beside the state: the time, and an input where it has one."""

    flow: VectorField
    time: Traced
    x: Traced | None

    @classmethod
    def of(cls, flow: VectorField, example: Tensor) -> _Given:
        dtype = (flow.time_dtype if isinstance(flow, NeuralFlow) else None) or example.dtype
        time = source(torch.zeros((), dtype=dtype, device=example.device))
        return cls(flow, time, source(flow.x[:1]) if isinstance(flow, InputFlow) else None)

    def field(self, state: Traced) -> Tensor:
        flow = self.flow
        if self.x is not None:
            flow = copy.copy(flow)
            flow.x = self.x  # type: ignore[attr-defined]
        return flow(self.time, state)


def _flow(reading: Reading, given: _Given) -> LureFlow:
    names = ("A", "B", "C", "B2", "D12", "e", "q", "activation", "metric")
    values = {name: getattr(reading, name) for name in names}
    if len(reading.layers) > 1 or reading.metric is not None:
        values |= {"D": reading.D, "layers": reading.layers}
    return LureFlow(**values, u=_input(reading.sources, given))


def _input(sources: tuple[Source, ...], given: _Given) -> Tensor | Signals | None:
    if not sources:
        return None
    x = None if given.x is None else (given.x, given.flow.x)  # type: ignore[attr-defined]
    signals = Signals(sources, given.time, x)
    try:
        return signals()
    except KeyError:  # a source asks what time it is
        return signals


class Signals:
    """u(t): what a field makes of the time and its input, as a function of the time, in float64."""

    def __init__(self, sources: tuple[Source, ...], time: Traced, x: tuple[Traced, Tensor] | None):
        self.sources, self.time, self.x = sources, time, x

    def __call__(self, t: Time | None = None) -> Tensor:
        """(k,) or (1, k), or (batch, k) for a time of shape (batch, 1) or an input of several rows."""
        plain = self.time.plain
        moment = None if t is None else rounded_down(t, plain.dtype, plain.device)
        x = None if self.x is None else self.x[1]
        times = None if moment is None or moment.ndim == 0 else moment.flatten()
        rows = None if x is None or len(x) == 1 else x
        if times is not None and rows is not None:
            return _each(self._at, times, rows)
        one = None if x is None else x[0]
        if times is not None:
            return _each(lambda now: self._at(now, one), times)
        return self._at(moment, one) if rows is None else _each(lambda row: self._at(moment, row), rows)

    def _at(self, moment: Tensor | None, x: Tensor | None) -> Tensor:
        """For one row."""
        now: Given = {}
        if moment is not None:
            now[_block(self.time)] = moment
        if self.x is not None and x is not None:
            now[_block(self.x[0])] = x[None]
        return torch.cat([source.recipe(now).flatten().to(torch.float64) for source in self.sources if source.recipe])


def _each(function: Callable[..., Tensor], *rows: Tensor) -> Tensor:
    """A function of each row."""
    try:
        return torch.func.vmap(function)(*rows)
    except (RuntimeError, PreconditionError):  # one that torch.func cannot follow, such as a solve
        return torch.stack([function(*row) for row in zip(*rows, strict=True)])


def _block(value: Traced) -> Block:
    assert value.form is not None
    (block,) = value.form.parts
    return block


def _example(flow: VectorField) -> Tensor:
    """A state of the size, dtype and device that the field takes, by trial.

    Raises:
        InputError: if none is found, or several sizes will do.
    """
    module = getattr(flow, "module", None)
    parameters = [p for p in module.parameters() if p.is_floating_point()] if isinstance(module, nn.Module) else []
    given = [flow.x] if isinstance(flow, InputFlow) else parameters
    kinds = [(tensor.dtype, tensor.device) for tensor in given[:1]]
    kinds = kinds or [(dtype, torch.device("cpu")) for dtype in (torch.float32, torch.float64)]
    sizes = sorted({size for p in parameters for size in p.shape})
    refused: Exception | None = None
    for (dtype, device), n in itertools.product(kinds, dict.fromkeys([*sizes, *range(1, _LARGEST)])):
        error = _refusal(flow, torch.zeros(_rows(flow, 1), n, dtype=dtype, device=device))
        if error is None:
            if _refusal(flow, torch.zeros(_rows(flow, 1), n + 1, dtype=dtype, device=device)) is None:
                raise InputError("state must be given, as the field takes states of any size: lure_of(field, state=s)")
            return torch.zeros(1, n, dtype=dtype, device=device)
        refused = error
    raise InputError(
        f"state must be given, as the field took none of up to {_LARGEST} entries: lure_of(field, state=s); the last "
        f"was refused with: {refused}"
    ) from refused


def _row(state: Any) -> Tensor:
    if checks.floating_tensor("state", state).ndim not in (1, 2) or not state.numel():
        raise InputError(f"state must have shape (n,) or (batch, n), got {tuple(state.shape)}")
    return state.detach().reshape(-1, state.shape[-1])[:1]


def _rows(flow: VectorField, usual: int) -> int:
    """How many states a field is run on: as many as it has inputs, where it has one for each."""
    return len(flow.x) if isinstance(flow, InputFlow) and len(flow.x) > 1 else usual


def _refusal(flow: VectorField, state: Tensor) -> Exception | None:
    try:
        with torch.no_grad():
            value = checks.shape("f(t, s)", flow(0.0, state), tuple(state.shape))
            checks.same_kind("f(t, s)", value, "the state", state)
    except Exception as error:  # whatever a function of anybody raises on a state that it does not take
        return error
    return None


def _compare(found: LureFlow, flow: VectorField, example: Tensor) -> None:
    """Refuse a reading that is not its field.

    Raises:
        InputError: if it differs at one of some random states.
    """
    generator, shape = torch.Generator().manual_seed(0), (_rows(flow, _ROWS), example.shape[1])
    for t, size in ((0.3, 1.0), (1.7, 10.0)):
        states = (size * torch.randn(shape, generator=generator, dtype=torch.float64)).to(example)
        with torch.no_grad():
            wanted, value = flow(t, states), found(t, states)
        difference = float((wanted - value).abs().max() / wanted.abs().max().clamp_min(1.0))
        if not difference <= _SAME.get(example.dtype, 1e-2):
            raise InputError(
                f"the field cannot be read as a Lur'e system: what was read differs from it by {difference:.1e}, so "
                "its rows see each other, it draws at random, or it depends on values in a way that torch does not show"
            )
