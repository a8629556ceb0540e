r"""Tensors that know how they depend on the state: affinely, once every activation's value is given a name.

A function runs on a ``Traced`` state as it stands, with its own control flow, and every operation of torch in it asks
``Traced.__torch_function__``. One that is affine in what is traced is carried out on the coefficients too (by its own
derivative, so that nobody writes its formula down again); an activation makes new neurons; of time and the input alone
anything may be made, as that is an input itself. Everything else is refused by its name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from contracting.activations.base import Activation
from contracting.errors import InputError
from contracting.metrics import WeightedL2

_REMEDY = (
    "write the field with linear layers, sums and activations of bounded slope, give its matrices to LureFlow, or "
    "teach the operation by contracting.register_reader; certify_region proves rates of other fields over a region, "
    "and sampled_rate needs no structure at all"
)


@dataclass(frozen=True, eq=False)
class Block:
    """Some entries that others depend on: the state, an input, or neurons."""

    size: int


@dataclass(frozen=True, eq=False)
class Source(Block):
    """An input: given at every time, whatever the state is.

    Attributes:
        recipe: from what is given at a moment (``Given``) to the value; None for the state.
    """

    recipe: Callable[[Given], Tensor] | None = None


@dataclass(frozen=True, eq=False)
class Neurons(Block):
    """w = σ(feed + Ww); ``metric`` is Λ in which that is well-posed, where there is a W."""

    activation: Activation
    feed: Form
    weight: Tensor | None = None
    metric: WeightedL2 | None = None


Given = dict[Any, Any]
"""What is known at a moment: values by the source that they are of, and intermediate ones by the call they are from."""


@dataclass(frozen=True, eq=False)
class Form:
    """offset + Σ coefficients·block, in float64.

    Attributes:
        offset: of the shape of the value.
        parts: for each block the coefficients, (size of the block, *shape of the value).
    """

    offset: Tensor
    parts: dict[Block, Tensor]

    def matrix(self, block: Block) -> Tensor:
        """The coefficients as a matrix, (entries of the value, size of the block)."""
        part = self.parts.get(block)
        if part is None:
            return self.offset.new_zeros(self.offset.numel(), block.size)
        return part.reshape(block.size, -1).mT


class Traced(Tensor):
    """A tensor with its form; its values are those at some state, and nobody may look at them.

    Attributes:
        plain: the same values as an ordinary tensor.
        form: how it depends on the state, inputs and neurons; None where it is no floating-point tensor.
        recipe: how it is made at another moment, where it does not depend on the state; else None.
        carried_out: what an operation gives; set by the table of operations, which stands on this file.
    """

    carried_out: ClassVar[Callable[[Call], Any]]
    plain: Tensor
    form: Form | None
    recipe: Callable[[Given], Any] | None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return cls.carried_out(Call(func, tuple(args), kwargs or {}))


def traced(value: Tensor, form: Form | None, recipe: Callable[[Given], Any] | None = None) -> Traced:
    """A value with its form."""
    plain = value.plain if isinstance(value, Traced) else value.detach()
    made = plain.as_subclass(Traced)
    made.plain, made.form, made.recipe = plain, form, recipe
    return made


def source(value: Tensor, recipe: Callable[[Given], Tensor] | None = None, *, given: bool = True) -> Traced:
    """What is given from outside, or the state, with a block of its own; ``recipe`` is None for what is looked up."""
    size = value.numel()
    if recipe is None:
        block = Source(size, lambda now: now[block])
    else:
        block = Source(size, recipe)
    exact = value.detach().to(torch.float64)
    eye = torch.eye(size, dtype=torch.float64, device=value.device).reshape(size, *value.shape)
    return traced(value, Form(torch.zeros_like(exact), {block: eye}), block.recipe if given else None)


def neurons(
    v: Tensor, activation: Activation, weight: Tensor | None = None, metric: WeightedL2 | None = None
) -> Traced:
    """w = σ(v + Ww) as new neurons: what a reader of a layer of one's own is made with.

    Args:
        v: pre-activations that are traced, (1, m), or of any other shape where there is no weight.
        activation: σ.
        weight: W, (m, m), by which the neurons see each other; None for none.
        metric: Λ in which w = σ(Ww + v) is well-posed; None tries Λ = I.
    """
    form = _formed(v)
    block = Neurons(form.offset.numel(), activation, form, weight, metric)
    eye = torch.eye(block.size, dtype=torch.float64, device=form.offset.device).reshape(block.size, *form.offset.shape)
    return traced(v, Form(torch.zeros_like(form.offset), {block: eye}))


@dataclass(frozen=True, eq=False)
class Call:
    """One operation of torch, as it was called."""

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """What torch calls it; that of the attribute for one that is looked up."""
        name = str(getattr(self.func, "__name__", self.func))
        return str(getattr(getattr(self.func, "__self__", None), "__name__", name)) if name == "__get__" else name

    @property
    def traced(self) -> list[Traced]:
        """Arguments that are traced, in order."""
        return [leaf for leaf in tree_flatten((self.args, self.kwargs))[0] if isinstance(leaf, Traced)]

    @property
    def varying(self) -> list[Traced]:
        """Those of them that are no constants."""
        return [argument for argument in self.traced if argument.form is None or argument.form.parts]

    @property
    def stateless(self) -> bool:
        """Whether nothing in it depends on the state."""
        return all(argument.recipe is not None for argument in self.traced)

    def run(self, replace: Callable[[Traced], Any], exactly: bool = False) -> Any:
        """Call with something else in the place of what is traced; ``exactly`` in float64."""
        leaves, spec = tree_flatten((self.args, self.kwargs))
        for k, leaf in enumerate(leaves):
            if isinstance(leaf, Traced):
                leaves[k] = replace(leaf)
            elif exactly and isinstance(leaf, Tensor) and leaf.is_floating_point():
                leaves[k] = leaf.to(torch.float64)
        args, kwargs = tree_unflatten(leaves, spec)
        return self.func(*args, **kwargs)

    @property
    def plain(self) -> Any:
        """The values of the result."""
        with torch.no_grad():
            return self.run(lambda argument: argument.plain)

    def affinely(self) -> Any:
        """The result of an operation that is affine in all that is traced, with its form."""
        inputs = list({id(argument): argument for argument in self.traced}.values())
        forms = [_formed(argument) for argument in inputs]

        def exact(*values: Tensor) -> Any:
            by_identity = {id(argument): value for argument, value in zip(inputs, values, strict=True)}
            return self.run(lambda argument: by_identity[id(argument)], exactly=True)

        offsets = tuple(form.offset for form in forms)
        blocks = list(dict.fromkeys(block for form in forms for block in form.parts))
        offset = exact(*offsets)
        moved = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the first jvp of torch loads what it has deprecated
            for block in blocks:
                missing = [form.offset.new_zeros(block.size, *form.offset.shape) for form in forms]
                parts = tuple(form.parts.get(block, zero) for form, zero in zip(forms, missing, strict=True))
                moved[block] = torch.func.vmap(lambda *d: torch.func.jvp(exact, offsets, d)[1])(*parts)
        return self._wrapped(lambda k: Form(_nth(offset, k), {block: _nth(part, k) for block, part in moved.items()}))

    def constant(self) -> Any:
        """The result where it depends on nothing."""
        value = self.plain
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return traced(value, Form(value.to(torch.float64), {}), lambda now: value)

    def unchanged(self) -> Any:
        """The result of an operation that changes nothing but the type or the place of its first argument."""
        first, value = self.args[0], self.plain
        if not isinstance(first, Traced) or not value.is_floating_point():
            return value
        return traced(value, first.form, self._replay() if self.stateless else None)

    def anyhow(self) -> Any:
        """The result of any operation on what does not depend on the state: an input of its own."""
        return self._wrapped(None)

    def _wrapped(self, form: Callable[[int | None], Form] | None) -> Any:
        """The result, a tensor or several, each with its form; without a form it is what is given from outside."""
        value = self.plain
        replay = self._replay() if self.stateless else None
        if isinstance(value, Tensor):
            return _wrap(value, None if form is None else form(None), replay)
        if not isinstance(value, (tuple, list)):
            raise self.refusal("it takes a number or a decision out of a tensor")
        made = [
            _wrap(v, None if form is None else form(k), None if replay is None else _item(replay, k))
            for k, v in enumerate(value)
        ]
        return type(value)(made) if type(value) in (tuple, list) else tuple(made)

    def _replay(self) -> Callable[[Given], Any]:
        """How to make the result at another moment, from its arguments as they are now."""
        recipes = {id(argument): argument.recipe for argument in self.traced}

        def replay(now: Given) -> Any:
            if self not in now:
                now[self] = self.run(lambda argument: cast(Callable[[Given], Any], recipes[id(argument)])(now))
            return now[self]

        return replay

    def refusal(self, reason: str) -> InputError:
        """Why this operation cannot be read."""
        return _unreadable(f"{self.name} is not known there, {reason}")


def _unreadable(reason: str) -> InputError:
    return InputError(f"the field cannot be read as a Lur'e system: {reason}; {_REMEDY}")


def _formed(argument: Tensor) -> Form:
    if not isinstance(argument, Traced) or argument.form is None:
        raise _unreadable("a mask or a constant is taken for a state")
    return argument.form


def _wrap(value: Tensor, form: Form | None, recipe: Callable[[Given], Any] | None) -> Traced:
    if form is None and recipe is not None and value.is_floating_point():
        return source(value, recipe)
    return traced(value, form, recipe)


def _nth(value: Any, k: int | None) -> Tensor:
    return cast(Tensor, value if k is None else value[k])


def _item(recipe: Callable[[Given], Any], k: int) -> Callable[[Given], Any]:
    return lambda now: recipe(now)[k]


def needed(forms: Sequence[Form]) -> Iterator[Block]:
    """Every block that these depend on, also through neurons, each once: neurons after all that they depend on."""
    seen: set[Block] = set()

    def visit(form: Form) -> Iterator[Block]:
        for block in form.parts:
            if block not in seen:
                seen.add(block)
                if isinstance(block, Neurons):
                    yield from visit(block.feed)
                yield block

    for form in forms:
        yield from visit(form)
