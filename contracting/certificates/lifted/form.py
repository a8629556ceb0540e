"""The root of a form of degree 2d: a norm where its balls are proved convex, else a gauge with a stated overshoot."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.certificates.definite import UNIT, definite_margin
from contracting.certificates.enclosures import Enclosure
from contracting.certificates.lifted.monomials import Basis, Lift, lift, variables
from contracting.display import Row
from contracting.errors import InputError, PreconditionError
from contracting.metrics import FullP, Metric, euclidean

# A bound is tried 2⁻⁴⁰ of the size of the form off what is computed, then twice as far, until it is proved.
_DIGITS = 40


# The largest value over directions is searched first among so many, then in so many rounds around the best one, each
# with so many points and so much closer: in the end within 10⁻⁷, where a maximum is flat to 10⁻¹⁴.
_DIRECTIONS, _ROUNDS, _AROUND, _CLOSER = 500, 32, 24, 0.6


@dataclass(frozen=True, eq=False, repr=False)
class LiftedForm(Metric):
    r"""‖s‖ = (s^{[d]ᵀ}Ps^{[d]})^{1/2d}, s^{[d]} all monomials of degree d, scaled so that ‖s^{[d]}‖₂ = ‖s‖₂^d.

    P = I is the Euclidean norm, d = 1 a ``FullP``. For d > 1 its balls are no ellipses, and it is a norm iff they are
    convex; ``convex`` says whether that is proved. Elsewhere ‖s₁ + s₂‖ ≤ ‖s₁‖ + ‖s₂‖ may fail, while decay in it is
    decay all the same: by ``overshoot`` at most is a Euclidean distance larger than its exponential. (The gauge of the
    convex hull of its balls then is a norm in which the same flow contracts at the same rate: linear maps keep hulls.)

    ``operator_norm`` and ``matrix_measure`` are the largest values that a search over directions finds, without
    gradients; no proof rests on them. There is no ``dual``.

    Args:
        matrix: P, (N, N), symmetric positive definite, N = C(n + d − 1, d); monomials in the order of
            ``itertools.combinations_with_replacement``.
        degree: d ≥ 1, half the degree of the form.
        curvature: proof that the form is convex, for ``convex``, (nM, nM) with the M monomials of degree d − 1; None
            tries without.
        spread: proofs of its smallest and its largest value on the sphere, for ``bounds``, (2, N, N); None takes P.

    Raises:
        InputError: if P is not symmetric and positive definite, has no such number of monomials, or more than 80.
    """

    matrix: Tensor
    degree: int = 2
    curvature: Tensor | None = None
    spread: Tensor | None = None

    def __post_init__(self) -> None:
        checks.whole_number("degree", self.degree)
        FullP(self.matrix)
        if variables(len(self.matrix), self.degree) is None:
            raise InputError(f"matrix has {len(self.matrix)} rows: so many monomials of degree {self.degree} no n has")
        for name, shape in (("curvature", 2 * (self.lift.directions.count,)), ("spread", (2, *self.matrix.shape))):
            value = getattr(self, name)
            if value is not None:
                checks.shape(name, checks.finite(name, checks.floating_tensor(name, value)), shape)

    @cached_property
    def lift(self) -> Lift:
        """s ↦ s^{[d]}."""
        size = variables(len(self.matrix), self.degree)
        assert size is not None
        return lift(size, self.degree)

    @property
    def size(self) -> int:
        return self.lift.size

    def tensors(self) -> tuple[Tensor, ...]:
        return (self.matrix,)

    @property
    def lifted(self) -> FullP:
        """The norm of P among the monomials."""
        return FullP(self.matrix) if self.matrix.requires_grad else self._once("lifted", lambda: FullP(self.matrix))

    def vector_norm(self, vectors: Tensor) -> Tensor:
        largest = vectors.detach().abs().amax(-1, keepdim=True)
        scale = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
        norm = self.lifted.vector_norm(self.lift.vectors(vectors / scale))
        return scale.squeeze(-1) * norm.pow(1 / self.degree)

    def induced_norm(self, matrices: Tensor) -> Tensor:
        return self._largest(lambda s: self.vector_norm(s @ matrices.mT) / self.vector_norm(s), matrices)

    def log_norm(self, matrices: Tensor) -> Tensor:
        P, moving = self.matrix, self.lift.flow(matrices)

        def growth(s: Tensor) -> Tensor:
            monomials = self.lift.vectors(s)
            dual = monomials @ P
            return (dual * (monomials @ moving.mT)).sum(-1) / (dual * monomials).sum(-1) / self.degree

        return self._largest(growth, matrices)

    @torch.no_grad()
    def _largest(self, of: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
        """The largest value over directions, (..., points, n) -> (..., points): all around, then closer and closer."""
        generator = torch.Generator().manual_seed(0)
        units = torch.eye(self.size, dtype=matrices.dtype, device=matrices.device)
        scale = 1 / self.vector_norm(units)  # so that the answer is the same in all units of the coordinates

        def drawn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(matrices)

        around = torch.cat([units, nn.functional.normalize(drawn(_DIRECTIONS, self.size), dim=-1)])
        around = around.expand(*matrices.shape[:-2], -1, -1)
        radius = 1.0
        for _ in range(_ROUNDS):
            values = of(around * scale)
            best = around.gather(-2, values.argmax(-1)[..., None, None].expand(*values.shape[:-1], 1, self.size))
            radius *= _CLOSER
            around = nn.functional.normalize(best + radius * drawn(_AROUND, self.size), dim=-1)
            around = torch.cat([best, around], -2)
        return of(around * scale).amax(-1)

    def make_dual(self) -> Metric:
        raise PreconditionError("the dual of a LiftedForm is no form, so there is no formula for it")

    def to(self, like: Tensor) -> LiftedForm:
        return replace(self, matrix=self.matrix.to(dtype=like.dtype, device=like.device))

    def rescaled(self, scale: Tensor) -> LiftedForm:
        shares = self.lift.monomials(scale)
        curvature, spread = self.curvature, self.spread
        if curvature is not None:
            below = (lift(self.size, self.degree - 1).monomials(scale)[:, None] * scale).flatten()
            curvature = curvature / below[:, None] / below
        if spread is not None:
            spread = spread / shares[:, None] / shares
        return LiftedForm(self.matrix / shares[:, None] / shares, self.degree, curvature, spread)

    @property
    def convex(self) -> bool:
        """Whether it is proved to be a norm: yᵀ∇²p(s)y ≥ 0 by a positive definite matrix, checked in float64."""
        return self._once("convex", self._convex)

    def _convex(self) -> bool:
        P, basis = _exact(self.matrix), self.lift.directions
        # the entries of ∇²p are averages of at most N products of three numbers, and the same for their absolute values
        size = self.lift.hessian(P.abs())
        form = Enclosure(self.lift.hessian(P), (len(P) + 12) * UNIT * size)
        if self.curvature is not None:
            form = form + relation(basis, _exact(self.curvature))
        return definite_margin(form.value, form.radius) > 0

    @property
    def bounds(self) -> tuple[float, float]:
        """r and R with r‖s‖₂ ≤ ‖s‖ ≤ R‖s‖₂, proved in float64."""
        return self._once("bounds", self._bounds)

    def _bounds(self) -> tuple[float, float]:
        P, (low, high) = _exact(self.matrix), (None, None) if self.spread is None else _exact(self.spread)
        power = 1 / (2 * self.degree)
        smallest = max(_smallest(P, None, self.lift), _smallest(P, low, self.lift))
        largest = -max(_smallest(-P, None, self.lift), _smallest(-P, high, self.lift))
        # the root is rounded inwards by less than one part in 10¹⁵ that is given away here
        return max(smallest, 0.0) ** power * (1 - 1e-15), largest**power * (1 + 1e-15)

    @property
    def overshoot(self) -> float:
        """C with ‖s(t)‖₂ ≤ C e^{−ct}‖s(0)‖₂ wherever ‖s(t)‖ ≤ e^{−ct}‖s(0)‖ in this form: R/r of ``bounds``."""
        low, high = self.bounds
        return high / low if low > 0 else math.inf

    @property
    def words(self) -> str:
        """What it is, in words."""
        kind = "a norm" if self.convex else f"overshoot ≤ {self.overshoot:.3g}"
        return f"{type(self).__name__} of degree {2 * self.degree}, {kind}"

    def shown(self) -> Sequence[Row]:
        kind = "proved convex: a norm" if self.convex else "not proved convex: a gauge"
        rows = [Row("degree of the form", 2 * self.degree), Row("balls", kind), Row("matrix", self.matrix)]
        return [*rows, Row("Euclidean overshoot at most", self.overshoot)]


def relation(basis: Basis, matrices: Tensor) -> Enclosure:
    """The part of symmetric matrices whose form is zero, with what rounding may have done to it."""
    matrices = (matrices + matrices.mT) / 2
    size = matrices.abs() + basis.matrix(basis.tensor(matrices.abs()))
    # an entry is a sum of at most N products, which are rounded a dozen times before and after
    return Enclosure(basis.relation(matrices), (basis.count + 12) * UNIT * size)


def _exact(values: Tensor) -> Tensor:
    values = values.detach().to("cpu", torch.float64)
    return (values + values.mT) / 2


def _smallest(P: Tensor, proof: Tensor | None, of: Lift) -> float:
    """A number that the form of P is proved to exceed on the sphere, from the smallest eigenvalue of P + relation."""
    form = Enclosure.exact(P)
    if proof is not None:
        form = form + relation(of, proof)
    guess, scale = float(torch.linalg.eigvalsh(form.value)[0]), float(euclidean(P.flatten()))
    identity = torch.eye(len(P), dtype=torch.float64)
    for digits in range(_DIGITS, 0, -1):
        low = guess - scale * 2.0**-digits
        if definite_margin(form.value - low * identity, form.radius + 2 * UNIT * (P.abs() + abs(low) * identity)) > 0:
            return low
    return -math.inf
