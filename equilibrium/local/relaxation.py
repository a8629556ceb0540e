r"""The inequality behind every local statement, as functions of explicit tensors of any precision.

Around an anchor every neuron moves by Δzᵢ = sᵢΔvᵢ with a secant slope sᵢ in [aᵢ, bᵢ]. With the middle m and half the
width h of these intervals, Δz = mΔv + hδ with |δᵢ| ≤ |Δvᵢ|, and Δv = WΔz + UΔx becomes

    Δv = T[δ; ξ],  T = (I − Wm)⁻¹[Wh, F],  U = FR with orthonormal rows of R,  ξ = RΔx, ‖ξ‖ ≤ ‖Δx‖.

Neurons whose interval is a point (h = 0) are gone. For a multiplier λ ≥ 0 every move satisfies pᵀMp ≤ ‖Δx‖² at
p = [δ; ξ], M = diag(λ, I) − Tᵀ diag(λ) T: an ellipsoid where M ≻ 0. A linear form e·p + d·Δx is therefore at most

    r·√(ℓᵀM⁻¹ℓ + ‖g − RᵀRg‖²) + cost(ω),  g = d + ω,  ℓ = e + [0; Rg],

(where a neuron is known to have left the piece of its anchor, Δz = sΔv + k, there is a constant t in Δv = T[δ; ξ] + t:
the ellipsoid is about M⁻¹Tᵀλt instead of 0, and its r² is larger by tᵀλ(t + TM⁻¹Tᵀλt),)

for any *pull* ω: the multipliers of low ≤ Δx ≤ high, ω > 0 pulling at the lower end and ω < 0 at the upper one, with
cost(ω) = Σ max(ω, 0)·(−low) + max(−ω, 0)·high. All of it is a bound for every λ and ω.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from equilibrium.local.surroundings import Rows, Surroundings

_NARROWEST = (
    1e-12  # A narrower interval is widened: its square must be a number in float32 too, where searches are made.
)


class Matrices(NamedTuple):
    """W (n, n), F (n, q) and R (q, in) of one network, in one precision."""

    W: Tensor
    F: Tensor
    R: Tensor

    def to(self, dtype: torch.dtype) -> Matrices:
        """The same in another precision."""
        return Matrices(*(matrix.to(dtype) for matrix in self))


@dataclass(frozen=True, kw_only=True, eq=False)
class Forms:
    """k affine forms of a move for each row: state·Δz + inner·Δv + direct·Δx + constant.

    Attributes:
        state: (batch, k, n), or None for zero.
        inner: (batch, k, n), or None for zero.
        direct: (batch, k, in), or None for zero.
        constant: (batch, k), or None for zero.
    """

    state: Tensor | None = None
    inner: Tensor | None = None
    direct: Tensor | None = None
    constant: Tensor | None = None

    def rows(self, index: Rows) -> Self:
        """Those of some rows."""
        return type(self)(**{name: None if part is None else part[index] for name, part in vars(self).items()})

    def to(self, dtype: torch.dtype) -> Self:
        """The same in another precision."""
        return type(self)(**{name: None if part is None else part.to(dtype) for name, part in vars(self).items()})

    def joined(self, others: Forms) -> Self:
        """These and others of the same rows; what only some of them have is zero in the rest."""
        sizes = [next(part for part in vars(each).values() if part is not None) for each in (self, others)]
        parts: dict[str, Tensor | None] = {}
        for name in vars(self):
            pair = [vars(each)[name] for each in (self, others)]
            like = next((part for part in pair if part is not None), None)
            parts[name] = (
                None
                if like is None
                else torch.cat(
                    [
                        like.new_zeros(*size.shape[:2], *like.shape[2:]) if p is None else p
                        for p, size in zip(pair, sizes, strict=True)
                    ],
                    1,
                )
            )
        return type(self)(**parts)

    def plus(self, multiples: Tensor, others: Forms) -> Self:
        """These and so many times each of others: (batch, k, m), m forms for each row."""
        added = {}
        for name, part in vars(others).items():
            own = vars(self)[name]
            if part is not None:
                more = multiples @ (part[..., None] if name == "constant" else part)
                more = more[..., 0] if name == "constant" else more
                own = more if own is None else own + more
            added[name] = own
        return type(self)(**added)


class Moves(NamedTuple):
    """How a move depends on p = [δ; ξ; 1]: Δv = Tp, Δz = mTp + hδ + k, with δ of u neurons, the undecided ones first.

    Attributes:
        T: (batch, n, u + q + 1).
        own: the rows of T of the undecided neurons, (batch, u, u + q + 1).
        places: the neuron of each δ, (batch, u); u is the largest number of undecided neurons of a row.
        middle: m, (batch, n).
        half: h of those neurons, (batch, u); zero where one is decided.
        shift: k, (batch, n).
    """

    T: Tensor
    own: Tensor
    places: Tensor
    middle: Tensor
    half: Tensor
    shift: Tensor

    @property
    def undecided(self) -> Tensor:
        """Which of the u neurons have a slope that is not known, (batch, u)."""
        return self.half > 0

    def coefficients(self, forms: Forms) -> Tensor:
        """The forms, without their direct part, as rows e of p: (batch, k, u + q + 1)."""
        u = self.places.shape[-1]
        found: Tensor | None = None
        if forms.inner is not None:
            found = forms.inner @ self.T
        if forms.state is not None:
            added = (forms.state * self.middle[:, None]) @ self.T
            own = self.places[:, None].expand(-1, added.shape[1], -1)
            added[..., :u] += forms.state.gather(-1, own) * self.half[:, None]
            added[..., -1] += (forms.state @ self.shift[..., None])[..., 0]
            found = added if found is None else found + added
        assert found is not None
        if forms.constant is not None:
            found[..., -1] += forms.constant
        return found


def middles(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """m and h of intervals of slopes, so that m ± h reach at least as far; h = 0 says that a neuron is decided."""
    middle = (low + high) / 2
    half = torch.maximum(high - middle, middle - low).clamp_min(_NARROWEST)
    return middle, torch.where(high > low, half, 0.0)


def moves(matrices: Matrices, middle: Tensor, half: Tensor, shift: Tensor | None = None) -> Moves:
    """T for Δz within (m ± h)Δv + k, each (batch, n); k is zero for None."""
    W, F, _ = matrices
    places = torch.argsort(half > 0, dim=-1, descending=True, stable=True)[:, : int((half > 0).sum(-1).max())]
    half = half.gather(-1, places)
    loop = torch.eye(len(W), dtype=W.dtype) - W * middle[:, None, :]
    shift = torch.zeros_like(middle) if shift is None else shift
    inputs = torch.cat([W.mT[places].mT * half[:, None, :], F.expand(len(middle), -1, -1), W @ shift[..., None]], -1)
    solved, _ = torch.linalg.solve_ex(loop, inputs)  # of a singular loop not finite
    own = solved.gather(1, places[..., None].expand(-1, -1, solved.shape[-1]))
    return Moves(solved, own, places, middle, half, shift)


class Whitened(NamedTuple):
    """T and the scale of p in the coordinates p = scale·p̃ in which every multiplier is one, so that M̃ = I − T̃ᵀT̃.

    An undecided neuron whose interval is narrow has a δ of little effect and a λ as small as its width squared; here
    both are of the size of everything else, and a decided neuron has a row and a column of zeros.

    Attributes:
        T: √λ T/√λ, the rows of the u neurons that have a δ, (batch, u, u + q + 1).
        scale: 1/√λ for δ, zero where decided, and one for ξ and the constant, (batch, u + q + 1).
    """

    T: Tensor
    scale: Tensor

    @property
    def quadratic(self) -> Tensor:
        """M̃, (batch, u + q, u + q)."""
        T = self.T[..., :-1]
        M = -T.mT @ T
        M.diagonal(dim1=-2, dim2=-1).add_(1.0)
        return M


def whitened(move: Moves, multiplier: Tensor) -> Whitened:
    """The move in the coordinates of λ > 0 of its u neurons, (batch, u); that of a decided one is ignored."""
    root = torch.where(move.undecided, multiplier, 0.0).sqrt()
    inverse = torch.where(move.undecided, 1 / root, 0.0)
    scale = torch.cat([inverse, torch.ones_like(move.T[:, 0, root.shape[-1] :])], -1)
    return Whitened(root[..., None] * move.own * scale[:, None], scale)


class Pull(NamedTuple):
    """ω, and what of g = d + ω lies in the rows of R.

    Attributes:
        omega: (batch, k, in).
        inside: Rg, (batch, k, q).
        outside: ‖g − RᵀRg‖², (batch, k).
    """

    omega: Tensor | None
    inside: Tensor | None
    outside: Tensor | float

    @classmethod
    def made(cls, matrices: Matrices, direct: Tensor | None, omega: Tensor | None) -> Pull:
        """The pull ω on forms with a direct part d."""
        if direct is None and omega is None:
            return cls(None, None, 0.0)
        g = direct if omega is None else omega if direct is None else direct + omega
        assert g is not None
        inside = g @ matrices.R.mT
        return cls(omega, inside, (g - inside @ matrices.R).square().sum(-1))

    def cost(self, around: Surroundings) -> Tensor | float:
        """Σ max(ω, 0)·(−low) + max(−ω, 0)·high, (batch, k)."""
        if self.omega is None or around.low is None or around.high is None:
            return 0.0
        return (self.omega.clamp_min(0) @ -around.low[..., None] + (-self.omega).clamp_min(0) @ around.high[..., None])[
            ..., 0
        ]


class Ellipsoid(NamedTuple):
    """All p̃ with (p̃ − centre)ᵀM̃(p̃ − centre) ≤ radius².

    Attributes:
        factor: of Cholesky, of M̃, (batch, u + q, u + q).
        centre: (batch, u + q).
        radius: (batch,).
    """

    factor: Tensor
    centre: Tensor
    radius: Tensor

    @classmethod
    def of(cls, factor: Tensor, white: Whitened, around: Surroundings, room: Tensor | float = 0.0) -> Ellipsoid:
        """That of a move in the coordinates of its multiplier; ``room`` is added to the square of the radius."""
        t = white.T[..., -1:]
        if not bool(t.any()):
            return cls(factor, torch.zeros_like(factor[..., 0]), (around.radius.square() + room).sqrt())
        pulled = torch.linalg.solve_triangular(factor, white.T[..., :-1].mT @ t, upper=False)
        centre = torch.linalg.solve_triangular(factor.mT, pulled, upper=True)[..., 0]
        longer = t.square().sum((-2, -1)) + pulled.square().sum((-2, -1))
        return cls(factor, centre, (around.radius.square() + longer + room).sqrt())


class Values(NamedTuple):
    """Bounds of the forms, and what gradients are made of.

    Attributes:
        bound: (batch, k).
        reach: √(ℓᵀM⁻¹ℓ + outside), (batch, k).
        point: the worst move p̃ of each form, (batch, k, u + q).
        sizes: of the parts whose sum the bound is, (batch, k).
    """

    bound: Tensor
    reach: Tensor
    point: Tensor
    sizes: Tensor


def evaluated(ellipsoid: Ellipsoid, coefficients: Tensor, pull: Pull, around: Surroundings) -> Values:
    """The bound of every form, whose last coefficient is a constant, over an ellipsoid of moves."""
    ell, constant = shifted(coefficients[..., :-1], pull), coefficients[..., -1]
    solved = torch.cholesky_solve(ell.mT, ellipsoid.factor).mT
    reach = ((ell * solved).sum(-1).clamp_min(0) + pull.outside).sqrt()
    radius, centre = ellipsoid.radius[:, None], ellipsoid.centre[..., None]
    parts = (radius * reach, (ell @ centre)[..., 0], constant, torch.as_tensor(pull.cost(around)))
    point = ellipsoid.centre[:, None] + (radius / reach.clamp_min(1e-30))[..., None] * solved
    sizes = parts[0] + (ell.abs() @ centre.abs())[..., 0] + parts[2].abs() + parts[3].abs()
    return Values(parts[0] + parts[1] + parts[2] + parts[3], reach, point, sizes)


def shifted(coefficients: Tensor, pull: Pull) -> Tensor:
    """ℓ = e + [0; Rg]."""
    if pull.inside is None:
        return coefficients
    n = coefficients.shape[-1] - pull.inside.shape[-1]
    return torch.cat([coefficients[..., :n], coefficients[..., n:] + pull.inside], -1)
