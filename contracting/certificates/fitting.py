"""A constant metric trained on given Jacobians: where a proof has to start from, and what a sampled rate is best in."""

from __future__ import annotations

import torch
from torch import Tensor

from contracting.metrics import FullP, Metric, WeightedL1, WeightedL2, WeightedLinf

Family = type[FullP] | type[WeightedL2] | type[WeightedL1] | type[WeightedLinf]


@torch.inference_mode(False)  # the training needs a graph
def fitted_metric(
    jacobians: Tensor, *, family: Family = FullP, steps: int = 500, learning_rate: float = 0.05
) -> Metric:
    """The metric of a family in which the largest matrix measure is small, by Adam on a smoothed maximum.

    Args:
        jacobians: (samples, n, n), float64.
        family: ``FullP``, ``WeightedL2``, ``WeightedL1`` or ``WeightedLinf``.
        steps: gradient steps.
        learning_rate: on the logarithms of the weights (and the off-diagonal entries of a factor of P).

    Returns:
        The best metric met.
    """
    n = jacobians.shape[-1]
    logs = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    lower = torch.zeros(n, n, dtype=torch.float64, requires_grad=family is FullP)
    optimiser = torch.optim.Adam([logs, lower] if family is FullP else [logs], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def make() -> Metric:
        if family is not FullP:
            return family(logs.exp())
        factor = torch.tril(lower, -1) + torch.diag(logs.exp())
        P = factor @ factor.mT
        return FullP((P + P.mT) / 2)

    with torch.no_grad():
        best, found = float("inf"), make()
    for step in range(steps + 1):
        with torch.enable_grad():
            metric = make()
            measures = metric.matrix_measure(jacobians)
            worst = float(measures.detach().amax())
            if worst < best:
                best, found = worst, family(*(tensor.detach() for tensor in metric.tensors()))
            if step == steps:
                break
            # a smooth maximum, within temperature·log(samples) of the real one
            spread = float(measures.detach().amax() - measures.detach().amin())
            temperature = max(1e-3, 0.1 * (1 - step / steps)) * max(spread, 1e-3)
            optimiser.zero_grad()
            (temperature * torch.logsumexp(measures / temperature, 0)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return found
