"""What goes into a solve and what comes out: when to stop, what to watch, and the record that is returned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contracting import checks
from contracting.display import Displayed, Row, Tabular
from contracting.errors import ContractingError, InputError, PreconditionError, Status
from contracting.metrics import Metric, lengths
from contracting.problem import Problem

Scale = TypeVar("Scale", Tensor, NDArray[Any])

_LEAST = 1e-2  # relative residual that a default tolerance stands for at least: two digits


@dataclass(frozen=True, kw_only=True)
class Stop:
    r"""When a row counts as solved, and when the loop gives up on it.

    A row is solved when ‖z − σ(Wz + q)‖ ≤ atol + rtol·‖σ(Wz + q)‖ holds at the z that is returned; for a field f it is
    ‖f(s)‖ ≤ atol + rtol·(the size of its terms), as ``FieldProblem`` says.

    Args:
        rtol: relative tolerance; None means 1e-8 in float64 and 1e-5 in float32, or what rounding lets one resolve,
            2·eps·(1 + ‖W‖), if that is larger. A tolerance that is given is kept as it is.
        atol: absolute tolerance; None means 1e-12 in float64 and 1e-7 in float32.
        max_steps: steps after which a row is given up as MAX_STEPS.
        patience: steps without a new best residual after which a row is given up as STALLED.
        check_every: steps between two checks of the residual; None lets the method say. Steps are counted at checks.
        norm: the norm of residuals and of what they are compared with; None is the Euclidean norm, for which an entry
            of size 0.1 beside one of 1e6 is not worth a look. ``WeightedL2(1 / size**2)`` or ``WeightedLinf(1 / size)``
            with the sizes (n,) of the entries make the tolerance one for each entry.

    Raises:
        InputError: if a setting is out of range or of a wrong kind.
    """

    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    patience: int = 2_000
    check_every: int | None = None
    norm: Metric | None = None

    def __post_init__(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            if value is not None:
                checks.number(f"Stop.{name}", value, low=0, high=1)
        checks.whole_number("Stop.max_steps", self.max_steps, low=0)
        checks.whole_number("Stop.patience", self.patience)
        if self.check_every is not None:
            checks.whole_number("Stop.check_every", self.check_every)
        if not (self.norm is None or isinstance(self.norm, Metric)):
            raise InputError(f"Stop.norm must be a Metric such as WeightedL2(weights), or None, got {self.norm!r}")

    def resolved(self, problem: Problem) -> Stop:
        """The same stop with the default tolerances of the problem filled in.

        Raises:
            InputError: if the norm is of another size.
            PreconditionError: if the precision of the problem allows for less than two digits.
        """
        if self.norm is not None and self.norm.size != problem.size:
            raise InputError(f"Stop.norm must act on {problem.size} entries, got {self.norm.size}")
        if self.rtol is not None and self.atol is not None:
            return self
        eps = torch.finfo(problem.template.dtype).eps
        rtol, atol = self.rtol, self.atol
        default_rtol, default_atol = problem.tolerances[0 if eps < 1e-12 else 1]
        if rtol is None and not problem.magnified_beyond(default_rtol / eps):
            rtol = default_rtol
        if rtol is None:
            floor = eps * problem.magnification
            if floor > _LEAST:
                raise PreconditionError(
                    f"{problem.template.dtype} resolves this weight, whose norm is about {floor / (2 * eps):.1e}, to a "
                    f"relative residual of {floor:.1e} only: use float64 (layer.double()), or ask for what will do, "
                    "Stop(rtol=…)"
                )
            rtol = max(default_rtol, floor)
        if atol is None:
            atol = default_atol
        last: Stop | None = self.__dict__.get("_last")
        if last is None or (last.rtol, last.atol) != (rtol, atol):
            last = replace(self, rtol=rtol, atol=atol)  # whose checks take as long as five steps of a single row
            self.__dict__["_last"] = last
        return last

    def size_of(self, rows: Tensor) -> Tensor:
        """The norm of each row, by which residuals are judged: (batch, n) -> (batch,)."""
        return lengths(rows) if self.norm is None else self.norm.norm(rows)

    def tolerance(self, scale: Scale) -> Scale:
        """The residual at which a row of this scale ‖σ(Wz + q)‖ is solved; of a resolved stop."""
        if self.rtol is None or self.atol is None:
            raise InputError("this Stop leaves its tolerances to the problem: call resolved(problem) first")
        return self.atol + self.rtol * scale


@dataclass(kw_only=True, repr=False)
class Trace(Tabular):
    """Watches a solve without touching it: residuals and times at every ``every``-th step, real entries only.

    After the solve, ``steps`` (records,), ``seconds`` (records,), ``residual`` (records, batch) and ``active``
    (records, batch) hold what was seen; a row's entries after its last active record repeat its final residual. The
    cost of watching is not part of ``seconds``. With ``keep_z`` the iterates are kept too: ``z`` (records, batch, n).
    """

    every: int = 1
    keep_z: bool = False
    _records: list[tuple[int, float, Tensor, Tensor, Tensor | None]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        checks.whole_number("Trace.every", self.every)

    def shown(self) -> Sequence[Row]:
        return [Row("records", len(self)), Row("every", self.every, "steps"), Row("keep_z", self.keep_z)]

    def _each(self) -> Iterator[dict[str, Any]]:
        for step, seconds, residual, active, _ in self._records:
            worst = float(residual.max()) if residual.numel() else 0.0
            yield {"step": step, "seconds": seconds, "worst_residual": worst, "active": int(active.sum())}

    def start(self) -> None:
        """Forget what an earlier solve recorded."""
        self._records.clear()

    def record(self, step: int, seconds: float, residual: Tensor, active: Tensor, z: Tensor) -> None:
        """Called by the loop; tensors are copied."""
        kept = z.detach().clone() if self.keep_z else None
        self._records.append((step, seconds, residual.detach().clone(), active.clone(), kept))

    def __len__(self) -> int:
        return len(self._records)

    @property
    def steps(self) -> Tensor:
        """Step numbers, (records,)."""
        return torch.tensor([record[0] for record in self._records])

    @property
    def seconds(self) -> Tensor:
        """Wall time of the solve up to each record in seconds, (records,)."""
        return torch.tensor([record[1] for record in self._records], dtype=torch.float64)

    @property
    def residual(self) -> Tensor:
        """Residual norms, (records, batch)."""
        return torch.stack([record[2] for record in self._records])

    @property
    def active(self) -> Tensor:
        """Which rows were still iterating when they got there, (records, batch)."""
        return torch.stack([record[3] for record in self._records])

    @property
    def z(self) -> Tensor:
        """Iterates, (records, batch, n); needs ``keep_z=True``."""
        if not self.keep_z:
            raise InputError("this trace kept no iterates; use Trace(keep_z=True)")
        return torch.stack([record[4] for record in self._records if record[4] is not None])


class Books(NamedTuple):
    """The numbers of a solve as the loop keeps them on the host, and where the tensors of them belong.

    Each is (batch,), but for a status and a number of steps that are those of every row.
    """

    status: NDArray[Any] | int
    residual: NDArray[Any]
    scale: NDArray[Any]
    steps: NDArray[Any] | int
    dtype: torch.dtype
    device: torch.device

    def tensors(self) -> dict[str, Tensor]:
        """What a record says of each row."""
        with np.errstate(all="ignore"):  # of rows that are lost
            relative = self.residual / np.maximum(self.scale, torch.finfo(self.dtype).tiny)
        rows = np.shape(self.residual)
        return {
            "status": torch.from_numpy(np.full(rows, self.status, dtype=np.int8)).to(self.device),
            "steps": torch.from_numpy(np.full(rows, self.steps, dtype=np.int64)).to(self.device),
            "residual": torch.from_numpy(self.residual).to(self.device, self.dtype),
            "relative_residual": torch.from_numpy(relative).to(self.device, self.dtype),
        }


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SolveRecord(Tabular):
    r"""What a solve measured, one entry per row.

    Attributes:
        status: (batch,), values of ``Status``.
        residual: (batch,), ‖z − σ(Wz + q)‖, or ‖f(z)‖, at the z that is returned, in the norm of the stop.
        relative_residual: (batch,), the residual over its scale, ‖σ(Wz + q)‖ or the size of the terms of f.
        steps: (batch,), iterations (or time steps) until the row stopped.
        map_evals: applications of W, or of a map made from it such as its resolvent, to a row, over the number of rows,
            rounded up; for a field, evaluations of f. Checks are included; what depends on the weights alone (bounds,
            factorisations) is not.
        seconds: wall time of the whole call, the binding to the weights included, watching excluded.
    """

    status: Tensor
    residual: Tensor
    relative_residual: Tensor
    steps: Tensor
    map_evals: int
    seconds: float

    @classmethod
    def of_books(cls, books: Books, **others: Any) -> Self:
        """A record whose tensors are made when one is asked for: of a single row that takes as long as steps."""
        record = object.__new__(cls)
        record.__dict__.update(others, _books=books)
        return record

    if not TYPE_CHECKING:  # where every name would count as an attribute

        def __getattr__(self, name: str) -> Any:
            books = self.__dict__.get("_books")
            if books is None or name not in _BOOKED:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            self.__dict__.update(books.tensors())
            return self.__dict__[name]

    def shown(self) -> Sequence[Row]:
        said = self.numbers()
        return [
            Row("rows", self.status.numel(), self._ends()),
            Row("steps", said["steps"], f"of the slowest row, {said['mean_steps']:.4g} in the mean"),
            Row("map_evals", self.map_evals, "applications of W"),
            Row("relative_residual", said["relative_residual"], "of the worst row"),
            Row("seconds", self.seconds, "s"),
        ]

    def _each(self) -> Iterator[dict[str, Any]]:
        columns = (self.status, self.steps, self.relative_residual, self.residual)
        for row, values in enumerate(zip(*(column.flatten().tolist() for column in columns), strict=True)):
            status, steps, relative, residual = values
            ended = {"row": row, "status": Status(status).name, "steps": steps}
            yield ended | {"relative_residual": relative, "residual": residual}

    @property
    def converged(self) -> Tensor:
        """(batch,), which rows are solved to tolerance."""
        return self.status == Status.CONVERGED

    def numbers(self) -> dict[str, float]:
        """By name what a training logs: the steps of the slowest row, the residual of the worst, the costs."""
        rows = self.status.numel()
        return {
            "rows": rows,
            "failed_rows": int((~self.converged).sum()),
            "steps": int(self.steps.max()) if rows else 0,
            "mean_steps": float(self.steps.double().mean()) if rows else 0.0,
            "map_evals": self.map_evals,
            "relative_residual": float(self.relative_residual.max()) if rows else 0.0,
            "seconds": self.seconds,
        }

    def summary(self) -> str:
        """One line: how many rows ended how, and the worst relative residual."""
        return f"{self._ends()}; worst relative residual {self.numbers()['relative_residual']:.2e}"

    def _ends(self) -> str:
        counts = Counter(Status(int(code)).name for code in self.status.flatten())
        return ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))


@dataclass(kw_only=True, repr=False)
class LastSolves(Displayed):
    """What the last solve forward and the last one backward measured, also where it failed; None before the first."""

    forward: SolveRecord | None = None
    backward: SolveRecord | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Solution(SolveRecord):
    r"""What a solve returns, one entry per row.

    Attributes:
        z: (batch, n), the equilibrium, or the last finite iterate of a row that failed.
        problem: what was solved, detached.
        trace: the trace that was passed in, or None.
    """

    z: Tensor
    problem: Problem = field(repr=False)  # weights are not what one prints a solution for
    trace: Trace | None = field(default=None, repr=False)

    def shown(self) -> Sequence[Row]:
        return [Row("z", self.z), *super().shown()]

    @property
    def record(self) -> SolveRecord:
        """The same without the states and the problem, which would stay in memory."""
        record = object.__new__(SolveRecord)
        record.__dict__.update({name: value for name, value in self.__dict__.items() if name in _RECORDED})
        return record

    @cached_property
    def error_bound(self) -> Tensor | None:
        """Certified bound on ‖z − z*‖ in the metric of the problem, (batch,); None without a proof, as Condition 1."""
        bound = self.problem.error_bound(self.z.detach().reshape(-1, self.problem.size))
        return None if bound is None else bound.reshape(self.status.shape)

    def reshape(self, *lead: int) -> Solution:
        """The same solution with the rows arranged in the leading shape ``lead``."""
        if lead == tuple(self.z.shape[:-1]):
            return self
        shaped = {
            name: getattr(self, name).reshape(lead) for name in ("status", "residual", "relative_residual", "steps")
        }
        return replace(self, z=self.z.reshape(*lead, self.z.shape[-1]), **shaped)


_BOOKED = frozenset({"status", "residual", "relative_residual", "steps"})
_RECORDED = frozenset({entry.name for entry in fields(SolveRecord)} | {"_books"})


class SolveError(ContractingError, RuntimeError):
    """Some rows did not converge; ``solution`` holds everything that was computed.

    Pass ``throw=False`` to receive the partial solution instead of this error.
    """

    def __init__(self, message: str, solution: Solution | None = None):
        super().__init__(message)
        self.solution = solution
