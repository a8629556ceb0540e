"""What pairs of inputs prove about a Lipschitz constant: the ratio they attain, less what rounding can add."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting.activations.base import Activation
from contracting.certificates.definite import UNIT
from contracting.display import Displayed
from contracting.errors import Status
from contracting.loop.method import Method
from contracting.loop.records import Solution, Stop
from contracting.loop.run import solve
from contracting.problem import checked_problem
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.splitting import PeacemanRachford
from equilibrium.convolution.weights import ConvolutionalWeights
from equilibrium.lipschitz.system import as_double
from equilibrium.weights import NetworkWeights, Weights, explicit_weights

_TIGHT = Stop(rtol=1e-12, atol=0.0, max_steps=5_000, patience=100)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AttainedRatio(Displayed):
    """Two inputs and the ratio ‖y(x₁) − y(x₂)‖₂/‖x₁ − x₂‖₂ they attain: a lower bound of the Lipschitz constant.

    Attributes:
        ratio: recomputed in float64 from the pair; what rounding can add to it is taken away.
        first: x₁, (in,).
        second: x₂, (in,).
        method: which search found it.
    """

    ratio: float
    first: Tensor
    second: Tensor
    method: str


class Pairs:
    """A network in float64, its readout without an offset, whose outputs at pairs of inputs are compared."""

    weights: Weights | ConvolutionalWeights
    activation: Activation
    solver: Method

    def solved(self, x: Tensor, z0: Tensor | None = None) -> tuple[Solution, Tensor]:
        """Equilibria of the rows of x as closely as float64 allows, and which rows were solved."""
        problem = self.weights.problem(x, self.activation)
        with torch.no_grad():
            solution = solve(problem, self.solver, z0=z0, stop=_TIGHT, throw=False)
        noise = solution.relative_residual <= 1e-11  # stalled at rounding level counts as solved
        return solution, solution.converged | (noise & (solution.status != Status.NONFINITE))

    def ratios(self, first: Tensor, second: Tensor) -> Tensor:
        """‖Δy‖/‖Δx‖ of each pair from two tight solves, less their possible errors, (batch,); zero if one failed."""
        one, good1 = self.solved(first)
        other, good2 = self.solved(second, one.z)
        step = first - second
        change = self.weights.readout(one.z - other.z, step)  # of weights without an offset, which would only round it
        norms = torch.linalg.vector_norm
        terms = self.weights.hidden_features + self.weights.in_features + 8
        rounding = norms(self.weights.output_matrix) * norms(one.z - other.z, dim=-1) + norms(change, dim=-1)
        error = self.output_error(one, first) + self.output_error(other, second) + terms * UNIT * rounding
        ratio = (norms(change, dim=-1) - error) / (norms(step, dim=-1) * (1 + terms * UNIT))
        good = good1 & good2 & step.any(-1) & torch.isfinite(ratio)
        return torch.where(good, ratio, torch.zeros_like(ratio)).clamp_min(0.0)

    def output_error(self, solution: Solution, x: Tensor) -> Tensor:
        """What W_o z may be wrong by in ℓ2, (batch,): proved where the weights have a metric with Condition 1.

        ‖z − z*‖_Λ is at most the error bound of the solution, and ‖δq‖_Λ/m more where q = Ux + b was rounded by δq.
        """
        metric, operator = self.weights.metric, checked_problem(solution.problem).operator
        if operator is None or metric is None or solution.error_bound is None:
            return self.first_order_error(solution, x)
        error = solution.error_bound + metric.norm(self.input_rounding(x)) / operator.bounds.monotonicity
        rows = self.weights.output_matrix / metric.weights.sqrt()
        return torch.linalg.matrix_norm(rows, 2) * (1 + 1e-9) * error

    def input_rounding(self, x: Tensor) -> Tensor:
        """An entrywise bound of the rounding in q = Ux + b, (batch, n)."""
        raise NotImplementedError

    def first_order_error(self, solution: Solution, x: Tensor) -> Tensor:
        """The same without a metric, to first order in the residuals; infinite where it is not known."""
        return torch.full_like(solution.residual, float("inf"))


class ImageNetwork(Pairs):
    """A network on images in float64: what a search can use that needs no matrix of it."""

    def __init__(self, weights: ConvolutionalWeights, activation: Activation):
        self.activation = activation.with_tensors([as_double(t) for t in activation.tensors()])
        exact = weights.double()
        self.weights: ConvolutionalWeights = replace(exact, output_bias=torch.zeros_like(exact.output_bias))
        self.solver = PeacemanRachford()

    def input_rounding(self, x: Tensor) -> Tensor:
        kernel = self.weights.input_kernel
        sizes = replace(self.weights, input_kernel=kernel.abs(), bias=self.weights.bias.abs()).input_term(x.abs())
        return (kernel[0].numel() + 4) * UNIT * sizes


class Network(Pairs):
    """Explicit weights and an activation in float64, with the quantities the searches need."""

    weights: Weights

    def __init__(self, network: NetworkWeights, activation: Activation):
        weights = network.dense()
        self.solver = SemismoothNewton()
        self.activation = activation.with_tensors([as_double(t) for t in activation.tensors()])
        metric = weights.metric
        self.weights = explicit_weights(
            as_double(weights.state.to_dense()),
            as_double(weights.input),
            as_double(weights.output),
            bias=as_double(weights.bias),
            feedthrough=None if weights.feedthrough is None else as_double(weights.feedthrough),
            metric=None if metric is None else as_double(metric.weights),
        )
        self.W, self.U, self.C = self.weights.state.to_dense(), self.weights.input, self.weights.output
        self.identity = torch.eye(self.W.shape[0], dtype=torch.float64)

    def slopes(self, x: Tensor, z0: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """J and v = Wz + q at the equilibria of x, and z: (batch, n) each."""
        solution, _ = self.solved(x, z0)
        v = checked_problem(solution.problem).preactivation(solution.z)
        return self.activation.derivative(v), v, solution.z

    def input_rounding(self, x: Tensor) -> Tensor:
        return (x.shape[1] + 4) * UNIT * (x.abs() @ self.U.abs().mT + self.weights.bias.abs())

    def first_order_error(self, solution: Solution, x: Tensor) -> Tensor:
        problem, z = checked_problem(solution.problem), solution.z
        sizes = z.abs() + z.abs() @ self.W.abs().mT + problem.q.abs()
        residual = problem.residual(z).abs() + (z.shape[1] + 4) * UNIT * sizes + self.input_rounding(x)
        T, _, _ = self.responses(problem.slopes(z))
        return 2 * torch.linalg.vector_norm((T.abs() @ residual[:, :, None])[:, :, 0], dim=-1)

    def responses(self, J: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """T = C(I − JW)⁻¹ (batch, out, n), H = (I − WJ)⁻¹U (batch, n, in), and the diagonal of (I − WJ)⁻¹W."""
        inverse = torch.linalg.inv(self.identity - self.W * J[:, None, :])  # (I − WJ)⁻¹
        H = inverse @ self.U
        T = self.C + (self.C * J[:, None, :]) @ (inverse @ self.W)  # (I − JW)⁻¹ = I + J(I − WJ)⁻¹W
        return T, H, (inverse * self.W.mT).sum(-1)

    def gains(self, J: Tensor, H: Tensor) -> Tensor:
        """G(J) = CJH + D, (batch, out, in)."""
        G = (self.C * J[:, None, :]) @ H
        return G if self.weights.feedthrough is None else G + self.weights.feedthrough


def attained(network: Pairs, first: Tensor, second: Tensor, method: str) -> AttainedRatio:
    """The best pair of a batch, solved anew by itself; of those equal up to rounding the longest."""
    ratios = network.ratios(first, second)
    length = torch.linalg.vector_norm(first - second, dim=-1)
    best = int(torch.where(ratios >= (1 - 1e-7) * ratios.max(), length, -1.0).argmax())
    ratio = float(network.ratios(first[best : best + 1], second[best : best + 1]))
    return AttainedRatio(ratio=ratio, first=first[best], second=second[best], method=method)
