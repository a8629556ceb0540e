"""What is computed from tensors and remembered beside them: until one of them changes in place, or a little longer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")

_AS_IT_IS: AbstractContextManager[Any] = nullcontext()

# This many values of one kind are kept, so that a sweep over steps does not keep a matrix for each.
_MOST = 8
# A value that only guides the work serves this many changes of the weights, such as training steps.
_GENERATIONS = 10


class Memory:
    """A few values of each kind, forgotten when one of the tensors they were computed from was changed in place.

    Torch counts no changes that are made through ``.data``, nor those of tensors made under ``torch.inference_mode``:
    such tensors must not be changed while something that was computed from them is held. (Layers are safe: they
    compute their weights anew from the parameters.) A copy of its holder (``copy.deepcopy``, pickle) starts with
    nothing remembered.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, list[tuple[Any, tuple[int, ...], Any]]] = {}
        self._present: tuple[int, ...] = ()
        self._sharing: dict[str, Any] = {}

    def __reduce__(self) -> tuple[type[Memory], tuple[()]]:
        return Memory, ()

    def keep(self, what: str, compute: Callable[[], T]) -> T:
        """A value made once, as it shares the tensors and so sees by itself what becomes of them."""
        value: T | None = self._sharing.get(what)
        if value is None:
            value = self._sharing[what] = _lasting(compute) if torch.is_inference_mode_enabled() else compute()
        return value

    def recall(self, what: str, tensors: Sequence[Tensor], compute: Callable[[], T], owner: Any = None) -> T:
        """The value of a kind for an owner, computed where it is not known, or not any more.

        Args:
            what: the kind.
            tensors: what every value in this memory depends on.
            compute: the value.
            owner: what else this value depends on: a number, by value; a tensor or an object with ``tensors()``, such
                as a metric, by identity and as long as it is not changed in place; None; or a tuple that begins with
                one of these and goes on with plain values.
        """
        present = versions(tensors)
        if present != self._present:
            self._kinds, self._present = {}, present
        seen = () if owner is None or isinstance(owner, float) else versions(_tensors_of(owner))
        known = self._kinds.get(what, [])
        for place in range(-1, -len(known) - 1, -1):
            entry = known[place]
            if entry[1] == seen and (entry[0] is owner or _same(entry[0], owner)):
                value: T = entry[2]
                if place == -1:  # nothing to reorder
                    return value
                break
        else:
            value = _lasting(compute) if torch.is_inference_mode_enabled() else compute()
        others = [entry for entry in self._kinds.get(what, ()) if not _same(entry[0], owner)] if known else ()
        self._kinds[what] = [*others[1 - _MOST :], (owner, seen, value)]  # the latest last
        return value


class Held:
    """One value of each kind, in a graph or not: computed once, and again after a change in place of its tensors.

    A value from a graph belongs to that graph and serves one backward pass. One that was computed without is computed
    again where a graph is recorded.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[Any, bool, tuple[int, ...]]] = {}

    def recall(self, what: str, tensors: Sequence[Tensor], compute: Callable[[], T]) -> T:
        """The value of a kind that depends on these tensors."""
        value, recorded, seen = self._kinds.get(what, (None, False, ()))
        wanted, present = torch.is_grad_enabled() and any(t.requires_grad for t in tensors), versions(tensors)
        if value is None or seen != present or (wanted and not recorded):
            value = compute()
            self._kinds[what] = value, wanted, present
        return cast(T, value)

    def without(self, what: str) -> Held:
        """A copy that forgets one kind."""
        held = Held()
        held._kinds = {kind: entry for kind, entry in self._kinds.items() if kind != what}
        return held


class Lineage:
    """What guides the solves with a succession of weights, such as those of a layer in training: known a little longer.

    Each value is computed for one of ten generations and serves the others. It may therefore be stale: a guess that can
    cost steps, never correctness, and is forgotten where a solve fails with it. A copy starts with nothing.
    """

    def __init__(self) -> None:
        self._generation = 0
        self._known: dict[str, tuple[int, Any, Any]] = {}
        self._homes: dict[tuple[torch.dtype, torch.device], Lineage] = {}

    def __reduce__(self) -> tuple[type[Lineage], tuple[()]]:
        return Lineage, ()

    def where(self, tensor: Tensor) -> Lineage:
        """The succession of weights of this dtype on this device: what guides them serves no others."""
        home = tensor.dtype, tensor.device
        if home not in self._homes:
            self._homes[home] = Lineage()
        return self._homes[home]

    def next_generation(self) -> None:
        """Other weights follow."""
        self._generation += 1

    def guess(self, what: str, key: Any) -> Any | None:
        """The value of a kind that earlier weights had; None where it is too old, or for another key."""
        made, known, value = self._known.get(what, (0, None, None))
        return value if _same(known, key) and self._generation - made < _GENERATIONS else None

    def keep(self, what: str, key: Any, value: Any) -> None:
        """Let the value of these weights serve those that follow."""
        self._known[what] = self._generation, key, value

    def forget(self) -> None:
        """Nothing is known of earlier weights any more."""
        self._known.clear()


class Remembering(ABC):
    """What is made of tensors and remembers on itself what was computed from them: an analysis, or a guide of solves.

    Brings ``watched``. A copy remembers nothing.
    """

    @property
    @abstractmethod
    def watched(self) -> tuple[Tensor, ...]:
        """The tensors whose change in place makes what is remembered stale."""

    @cached_property
    def _memory(self) -> Memory:
        return Memory()

    @cached_property
    def _lineage(self) -> Lineage | None:
        return None

    def remember(self, what: str, owner: Any, compute: Callable[[], T]) -> T:
        """Compute ``what`` once for an ``owner`` (a metric or tensor step by identity, a number by value).

        Computed again after a change in place of the tensors or the owner; of each kind, only the latest few are kept.
        """
        if torch.compiler.is_compiling():
            return compute()  # what is part of a graph must not outlive it
        return self._memory.recall(what, self.watched, compute, owner)

    @property
    def guided(self) -> bool:
        """Whether what guides these solves may serve those that follow."""
        return self._lineage is not None

    def descend_from(self, lineage: Lineage) -> None:
        """Take over what guided the solves with earlier weights, for as long as it may serve."""
        self.__dict__["_lineage"] = own = lineage.where(self.watched[0])
        own.next_generation()

    @cached_property
    def _guides(self) -> Memory:
        return Memory()

    def guide(self, what: str, owner: Any, compute: Callable[[], T], key: Any = None) -> T:
        """``remember``, or what is known of earlier weights for this key: what is stale costs steps, and no more."""

        def found() -> T:
            lineage = self._lineage
            if lineage is None:
                return compute()
            guess = lineage.guess(what, key)
            if guess is None:
                guess = compute()
                lineage.keep(what, key, guess)
            else:
                self.__dict__["_guessed"] = True
            return cast(T, guess)

        return self._guides.recall(what, self.watched, found, owner)

    def start_anew(self) -> bool:
        """Forget what is known of earlier weights only, as a solve has failed with it; False if nothing was guessed."""
        guessed: bool = self.__dict__.pop("_guessed", False)
        if guessed and self._lineage is not None:
            self._lineage.forget()
            self.__dict__["_guides"] = Memory()
        return guessed


def _lasting(compute: Callable[[], T]) -> T:
    """A value that may be used anywhere: one made in ``torch.inference_mode`` could not enter a graph later."""
    with torch.inference_mode(False), torch.no_grad():
        return compute()


def in_no_graph() -> AbstractContextManager[Any]:
    """``torch.no_grad()``, at a tenth of its price where no graph is recorded anyway."""
    return torch.no_grad() if torch.is_grad_enabled() else _AS_IT_IS


def versions(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """How often each was changed in place, but through ``.data``, which torch does not count."""
    if len(tensors) == 1:  # as mostly, and asked for so often that a comprehension is felt
        tensor = tensors[0]
        return (-1 if tensor.is_inference() else tensor._version,)
    return tuple([-1 if tensor.is_inference() else tensor._version for tensor in tensors])


def _same(known: Any, owner: Any) -> bool:
    if known is owner or type(known) is not type(owner):
        return known is owner
    if isinstance(known, tuple):
        return _same(known[0], owner[0]) and bool(known[1:] == owner[1:])
    return isinstance(known, float) and bool(known == owner)


def _tensors_of(owner: Any) -> Sequence[Tensor]:
    if isinstance(owner, tuple):
        owner = owner[0]
    if isinstance(owner, Tensor):
        return (owner,)
    if owner is None or isinstance(owner, float):
        return ()
    found: Sequence[Tensor] = owner.tensors() if hasattr(owner, "tensors") else ()
    return found
