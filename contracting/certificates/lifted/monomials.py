r"""The lift s ↦ s^{[d]}: all monomials of degree d, scaled so that ‖s^{[d]}‖ = ‖s‖^d, and what linear flows do there.

A form of degree 2d is s^{[d]ᵀ}Ps^{[d]} for many P: two entries whose monomials have the same product can trade.
``relation`` is the projection onto what such trades can make, the matrices whose form is zero.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from contracting.errors import InputError

MOST_MONOMIALS = 80  # Beyond, a semidefinite program with a matrix of this size takes more than minutes.


@dataclass(frozen=True, eq=False)
class Basis:
    r"""Monomials as a basis: x^α·√w for each row α of the exponents, and what symmetric matrices say in it.

    Attributes:
        exponents: α, whole numbers, (N, k).
        weights: w > 0, whole numbers, (N,).
    """

    exponents: Tensor
    weights: Tensor

    @property
    def count(self) -> int:
        """N."""
        return len(self.weights)

    @cached_property
    def root(self) -> Tensor:
        """√w, (N,)."""
        return self.weights.sqrt()

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor]:
        """The products of two monomials, (Γ, k), and which of them each pair makes, (N·N,)."""
        sums = self.exponents[:, None] + self.exponents
        return torch.unique(sums.flatten(0, 1), dim=0, return_inverse=True)

    @property
    def products(self) -> Tensor:
        """The exponents of all products of two monomials, (Γ, k)."""
        return self._products[0]

    @cached_property
    def totals(self) -> Tensor:
        """Σ w_α w_β over the pairs that make each product: multinomial coefficients again, (Γ,)."""
        products, index = self._products
        shares = (self.weights[:, None] * self.weights).flatten()
        return shares.new_zeros(len(products)).index_add(0, index, shares)

    def tensor(self, matrices: Tensor) -> Tensor:
        """The symmetric tensor of a form: its coefficients over their multinomials, (..., N, N) -> (..., Γ)."""
        products, index = self._products
        terms = (matrices * (self.root[:, None] * self.root)).flatten(-2)
        return terms.new_zeros(*terms.shape[:-1], len(products)).index_add(-1, index, terms) / self.totals

    def matrix(self, tensor: Tensor) -> Tensor:
        """The matrix of a form in which all pairs with one product say the same, (..., Γ) -> (..., N, N)."""
        entries = tensor[..., self._products[1]].reshape(*tensor.shape[:-1], self.count, self.count)
        return entries * (self.root[:, None] * self.root)

    def relation(self, matrices: Tensor) -> Tensor:
        """The part of symmetric matrices whose form is zero, by orthogonal projection: (..., N, N), both."""
        return matrices - self.matrix(self.tensor(matrices))

    @cached_property
    def relations(self) -> Tensor:
        """A basis of the matrices whose form is zero, one in each row: (r, N·N)."""
        groups: dict[int, list[int]] = {}
        for pair, product in enumerate(self._products[1].tolist()):
            if pair // self.count <= pair % self.count:
                groups.setdefault(product, []).append(pair)
        found = []
        for first, *others in groups.values():
            for other in others:
                trade = torch.zeros(self.count, self.count, dtype=torch.float64)
                for pair, sign in ((first, 1.0), (other, -1.0)):
                    i, j = divmod(pair, self.count)
                    share = sign / float(self.root[i] * self.root[j])
                    trade[i, j] += share / 2
                    trade[j, i] += share / 2
                found.append((trade / torch.linalg.matrix_norm(trade)).flatten())
        return torch.stack(found) if found else torch.zeros(0, self.count**2, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Lift(Basis):
    """All monomials of degree d in n variables, with multinomial coefficients as weights.

    Attributes:
        degree: d.
    """

    degree: int

    @property
    def size(self) -> int:
        """n."""
        return self.exponents.shape[1]

    def vectors(self, vectors: Tensor) -> Tensor:
        """s^{[d]}: (..., n) -> (..., N)."""
        return self.monomials(vectors) * self.root.to(vectors)

    def monomials(self, vectors: Tensor) -> Tensor:
        """The monomials without their weights: (..., n) -> (..., N)."""
        return (vectors[..., None, :] ** self.exponents.to(vectors.device)).prod(-1)

    @cached_property
    def _steps(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where the entry A_ij acts, flat in (N, N), with which coefficient √(αᵢβⱼ), and i and j."""
        place = {tuple(alpha): index for index, alpha in enumerate(self.exponents.tolist())}
        found = []
        for alpha, row in place.items():
            for i, j in itertools.product(range(self.size), repeat=2):
                if alpha[i]:
                    beta = list(alpha)
                    beta[i] -= 1
                    beta[j] += 1
                    found.append((row * self.count + place[tuple(beta)], alpha[i] * beta[j], i, j))
        where, products, rows, columns = (torch.tensor(column) for column in zip(*found, strict=True))
        return where, products.double().sqrt(), rows, columns

    def flow(self, matrices: Tensor) -> Tensor:
        """A^{[d]}, with which (s^{[d]})' = A^{[d]}s^{[d]} where s' = As; linear in A: (..., n, n) -> (..., N, N)."""
        where, coefficients, rows, columns = self._steps
        terms = matrices[..., rows, columns] * coefficients.to(matrices)
        flat = terms.new_zeros(*terms.shape[:-1], self.count**2).index_add(-1, where, terms)
        return flat.reshape(*terms.shape[:-1], self.count, self.count)

    @cached_property
    def _split(self) -> Tensor:
        """The isometry V with s^{[d−1]} ⊗ s = Vs^{[d]}, (N', n, N), for d ≥ 2."""
        below = lift(self.size, self.degree - 1)
        place = {tuple(alpha): index for index, alpha in enumerate(below.exponents.tolist())}
        V = torch.zeros(below.count, self.size, self.count, dtype=torch.float64)
        for column, alpha in enumerate(self.exponents.tolist()):
            for i in range(self.size):
                if alpha[i]:
                    mu = list(alpha)
                    mu[i] -= 1
                    V[place[tuple(mu)], i, column] = math.sqrt(alpha[i] / self.degree)
        return V

    def map(self, matrices: Tensor) -> Tensor:
        """The matrix with which s^{[d]} moves where s becomes Ms: (..., n, n) -> (..., N, N)."""
        if self.degree == 1:
            return matrices
        V = self._split.to(matrices)
        below = lift(self.size, self.degree - 1).map(matrices)
        moved = torch.einsum("...ab,bjq->...ajq", below, V)
        moved = torch.einsum("...ij,...ajq->...aiq", matrices, moved)
        return torch.einsum("aip,...aiq->...pq", V, moved)

    @cached_property
    def directions(self) -> Basis:
        """The products s^μ yᵢ with |μ| = d − 1, in which the second derivative of a form is a quadratic form."""
        below, n = lift(self.size, self.degree - 1), self.size
        units = torch.eye(n, dtype=torch.long).repeat(below.count, 1)
        exponents = torch.cat([below.exponents.repeat_interleave(n, 0), units], 1)
        return Basis(exponents, below.weights.repeat_interleave(n))

    @cached_property
    def _second(self) -> Tensor:
        """Which entry of the tensor of a form stands at each product of two directions."""
        place = {tuple(gamma): index for index, gamma in enumerate(self.products.tolist())}
        both = self.directions.products
        return torch.tensor([place[tuple(gamma)] for gamma in (both[:, : self.size] + both[:, self.size :]).tolist()])

    def hessian(self, matrices: Tensor) -> Tensor:
        """A matrix of yᵀ∇²p(s)y/(2d(2d − 1)) in the directions, p the form of P: (..., N, N) -> (..., M, M)."""
        return self.directions.matrix(self.tensor(matrices)[..., self._second])


@functools.lru_cache(maxsize=64)
def lift(size: int, degree: int) -> Lift:
    """The lift of ℝⁿ to degree d; d = 0 has one monomial.

    Raises:
        InputError: if there would be more than 80 monomials.
    """
    count = math.comb(size + degree - 1, degree)
    if count > MOST_MONOMIALS:
        raise InputError(
            f"degree {degree} has {count} monomials in {size} variables, of which at most {MOST_MONOMIALS} are "
            "affordable: take a smaller degree, or VertexInequalities() for the best quadratic metric"
        )
    chosen = list(itertools.combinations_with_replacement(range(size), degree))
    exponents = torch.tensor([[pick.count(i) for i in range(size)] for pick in chosen], dtype=torch.long)
    exponents = exponents.reshape(count, size)
    weights = [math.factorial(degree) // math.prod(map(math.factorial, alpha)) for alpha in exponents.tolist()]
    return Lift(exponents, torch.tensor(weights, dtype=torch.float64), degree)


def variables(count: int, degree: int) -> int | None:
    """In how many variables there are so many monomials of a degree, or None."""
    size = 1
    while math.comb(size + degree - 1, degree) < count:
        size += 1
    return size if math.comb(size + degree - 1, degree) == count else None
