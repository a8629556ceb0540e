r"""Decay in a form of higher degree, proved from the Jacobians at the vertices of the slopes.

With F^{[d]} the matrix that moves s^{[d]} where s' = Fs, the form p = s^{[d]ᵀ}Ps^{[d]} decays at rate 2dc along it
if −(F^{[d]ᵀ}P + PF^{[d]} + 2dcP) + S ≻ 0 for some S whose form is zero. F^{[d]} is linear in F, so that finitely many F
and their S prove all convex combinations of the F, which the differences of trajectories follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from contracting import checks
from contracting.certificates.definite import UNIT, definite_margin, definite_margins, sizes
from contracting.certificates.enclosures import Enclosure
from contracting.certificates.lifted.form import LiftedForm, relation
from contracting.certificates.records import CertificateError

_BLOCK = 64  # So many vertices are lifted at a time, which bounds the memory that their matrices take.


def lifted_margin(
    metric: LiftedForm, relations: Tensor | None, jacobians: Iterable[Enclosure | None], rate: float
) -> float:
    """Margin of −(FᵀP + PF + 2dcP) + S ≻ 0 for the lift of each Jacobian with its S, and of P ≻ 0.

    Args:
        metric: the form.
        relations: S of each Jacobian, (count, N, N), of which only the part counts whose form is zero; None is zero.
        jacobians: in blocks, (block, n, n) each; None where nothing follows from them.
        rate: c.

    Raises:
        CertificateError: if there are not as many relations as Jacobians.
    """
    lift, d = metric.lift, metric.degree
    matrix = (metric.matrix + metric.matrix.mT) / 2
    P, decay = Enclosure.exact(matrix), Enclosure.exact(matrix) * (2.0 * d) * rate
    worst, count = definite_margin(matrix, UNIT * sizes(matrix)), 0
    for block in jacobians:
        if block is None:
            return -math.inf
        for first in range(0, len(block.value), _BLOCK):
            F = block[first : first + _BLOCK]
            size = lift.flow(F.size)
            # each entry is a sum of at most n entries times a root of a whole number
            product = P @ Enclosure(lift.flow(F.value), lift.flow(F.radius) + (lift.size + 4) * UNIT * size)
            form = -(product + product.mT + decay)
            count += len(F.value)
            if relations is not None:
                if count > len(relations):
                    raise CertificateError(f"the certificate has {len(relations)} relations, the flow more vertices")
                form = form + relation(lift, relations[count - len(F.value) : count])
            worst = min(worst, float(definite_margins(form.value, form.radius).min()))
    if relations is not None and count != len(relations):
        raise CertificateError(f"the certificate has {len(relations)} relations for {count} vertices")
    return worst


def lifted_rate(metric: LiftedForm, relations: Tensor | None, jacobians: Tensor) -> float:
    """The largest rate that a form and its relations prove, up to rounding: (count, n, n) -> a number."""
    lift, P = metric.lift, metric.matrix
    product = P @ lift.flow(jacobians)
    form = -(product + product.mT)
    if relations is not None:
        form = form + lift.relation((relations + relations.mT) / 2)
    root, info = torch.linalg.cholesky_ex(P)
    if int(info):
        return -math.inf
    half = torch.linalg.solve_triangular(root, form, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.mT, upper=False)
    return float(torch.linalg.eigvalsh((whitened + whitened.mT) / 2)[..., 0].min()) / (2 * metric.degree)


def rescaled_relations(metric: LiftedForm, relations: Tensor | None, scale: Tensor) -> Tensor | None:
    """The same relations in the coordinates x' = scale∘x.

    Raises:
        InputError: if they are no matrices of the size of the form.
    """
    if relations is None:
        return None
    checks.shape("multiplier", relations, (len(relations), *metric.matrix.shape))
    relations = relations.detach().to("cpu", torch.float64)
    shares = metric.lift.monomials(scale)
    return relations / shares[:, None] / shares
