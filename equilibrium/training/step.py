"""One step of the optimiser on a batch, each process of ``torchrun`` with its part of the rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equilibrium.training import ranks
from equilibrium.training.losses import Loss
from equilibrium.training.records import TrainingError


class OptimizerStep:
    """Steps of one optimiser on one model.

    Processes add up the gradients of the sums over their rows, with the sums of losses and errors in the same message:
    the gradient of the mean over all rows, however unevenly these are divided. DistributedDataParallel would average
    means, begins to send inside the backward pass, so that a process whose adjoint cannot be solved leaves the others
    waiting, and gains nothing here: the gradients of all parameters come out of the explicit weights at its very end.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer):
        self.model, self.optimizer = model, optimizer
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def __call__(self, inputs: Tensor, targets: Tensor, loss: Loss) -> tuple[float, float]:
        """The mean loss before the step and the sum of the errors of the rows, of all processes together.

        Raises:
            TrainingError: if the loss is not finite.
            ContractingError: if the model cannot be solved, in this process or in another.
        """
        self.optimizer.zero_grad()
        if ranks.count() == 1:
            found = self._gradients(inputs, targets, loss)
        else:
            found = self._together(inputs, targets, loss)
        self.optimizer.step()
        return found

    def _gradients(self, inputs: Tensor, targets: Tensor, loss: Loss) -> tuple[float, float]:
        judged = loss.of(self.model, inputs, targets)
        value = judged.value
        if not bool(torch.isfinite(value)):
            raise TrainingError(f"the loss is {float(value.detach()):g}")
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach()), float(loss.errors(judged.outputs.detach(), targets).sum())

    def _together(self, inputs: Tensor, targets: Tensor, loss: Loss) -> tuple[float, float]:
        rows, part = len(inputs), ranks.part(len(inputs))
        sizes = [parameter.numel() for parameter in self._parameters]
        empty = torch.zeros(sum(sizes) + len(sizes) + 2, dtype=torch.float64, device=inputs.device)

        def sums() -> Tensor:
            own = part.stop - part.start
            if own == 0:
                return empty
            value, errors = self._gradients(inputs[part], targets[part], loss)
            gradients = [
                empty.new_zeros(size) if parameter.grad is None else own * parameter.grad.double().flatten()
                for size, parameter in zip(sizes, self._parameters, strict=True)
            ]
            seen = [float(parameter.grad is not None) for parameter in self._parameters]
            return torch.cat([*gradients, empty.new_tensor([*seen, own * value, errors])])

        *gradients, seen, told = torch.split(ranks.total(sums, empty), [*sizes, len(sizes), 2])
        for parameter, gradient, used in zip(self._parameters, gradients, seen.tolist(), strict=True):
            # a parameter that the loss does not know stays without a gradient, which Adam tells from a gradient of zero
            parameter.grad = (gradient / rows).to(parameter).view_as(parameter) if used else None
        value, errors = told.tolist()
        return value / rows, errors
