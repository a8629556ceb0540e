r"""Lower bounds of the Lipschitz constant: pairs of inputs that attain a ratio, found in three ways.

The gain of one linear piece is G(J) = C(I − JW)⁻¹JU + D, J the slopes at the equilibrium. Three searches:

* ``PatternSearch`` climbs ‖G(J)‖₂ over slope patterns by single flips, all n of them rated by one rank-one formula. If
  U has full row rank *every* pattern is the pattern of some input, x = U⁺(v − Wσ(v) − b) for a v that has the slopes J;
  otherwise the nearest input is a starting point for the next search.
* ``RegionWalk`` moves an input across the kinks of single neurons into linear pieces of larger gain.
* ``PairAscent`` climbs ‖y(x₁) − y(x₂)‖/‖x₁ − x₂‖ by the implicit gradient, as the authors of arXiv 2010.01732 do, from
  a step along the steepest direction at x₁. It needs no matrix.

Inputs are not restricted to a box. What is reported is always the ratio of an actual pair, solved anew in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.base import Activation
from contracting.gradients.implicit import Implicit
from contracting.loop.records import Stop
from equilibrium.lipschitz.pairs import AttainedRatio, Network, Pairs, attained


def flip_gains(network: Network, J: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """‖G‖ at J, ‖G‖ after changing each slope by ``change``, (batch, n), and H.

    With s = δ/(1 − δ((I − WJ)⁻¹W)ᵢᵢ) the new gain is G + s T₍·ᵢ₎H₍ᵢ·₎: an update of the Gram matrix GGᵀ.
    """
    T, H, diagonal = network.responses(J)
    G = network.gains(J, H)
    s = change / (1 - change * diagonal)
    gram, cross = G @ G.mT, G @ H.mT  # (b, p, p), (b, p, n)
    norms = H.square().sum(-1)
    columns, mixed = T.mT, cross.mT  # (b, n, p)
    update = mixed[:, :, :, None] * columns[:, :, None, :]
    update = s[:, :, None, None] * (update + update.mT)
    update = update + (s.square() * norms)[:, :, None, None] * columns[:, :, :, None] * columns[:, :, None, :]
    top = torch.linalg.eigvalsh(gram[:, None] + update)[..., -1]
    here = torch.linalg.eigvalsh(gram)[..., -1]
    return here.clamp_min(0).sqrt(), top.clamp_min(0).sqrt(), H


_MIXTURES = 16  # A steepest direction is sought through so many mixtures of outputs at most: an adjoint solve each.


@dataclass(frozen=True, kw_only=True)
class PatternSearch:
    """Local search over slope patterns by single flips, from many random starts and kicks.

    Args:
        restarts: patterns that are improved side by side.
        rounds: how often each local optimum is kicked (some slopes flipped at random) and improved again.
        flips: most flips per round.
    """

    restarts: int = 16
    rounds: int = 4
    flips: int = 200

    def __post_init__(self) -> None:
        for name in ("restarts", "rounds", "flips"):
            checks.whole_number(name, getattr(self, name))

    def find(self, network: Network, x: Tensor, generator: torch.Generator) -> AttainedRatio:
        """The best pair; half of the starts are the patterns of the inputs x, (batch, in)."""
        on, value = self.patterns(network, x, generator)
        first, second = _pairs_with_slopes(network, on[value.argsort(descending=True)[:4]])
        return attained(network, first, second, "slope patterns")

    def patterns(self, network: Network, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The pattern that each restart ends with, (restarts, n), and ‖G‖ there, whether or not an input has it."""
        n = network.W.shape[0]
        low, high = network.activation.slope_intervals(n)
        density = torch.rand(self.restarts, 1, generator=generator, dtype=torch.float64)
        on = torch.rand(self.restarts, n, generator=generator, dtype=torch.float64) < density
        half = min(len(x), self.restarts // 2)
        if half:
            on[:half] = network.slopes(x[:half])[0] > (low + high) / 2
        small = _with_few_inputs(network)
        best, best_value = on.clone(), torch.zeros(self.restarts, dtype=torch.float64)
        for kick in range(self.rounds):
            on, value = self._climb(small, on, low, high)
            better = value > best_value
            best, best_value = torch.where(better[:, None], on, best), torch.where(better, value, best_value)
            share = 0.15 / (kick + 1)
            on = best ^ (torch.rand(self.restarts, n, generator=generator, dtype=torch.float64) < share)
        return best, best_value

    def _climb(self, network: Network, on: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.zeros(len(on), dtype=torch.float64)
        for _ in range(self.flips):
            value, after, _ = flip_gains(network, torch.where(on, high, low), torch.where(on, low - high, high - low))
            best, index = torch.nan_to_num(after).max(-1)
            moves = best > value * (1 + 1e-9)
            if not bool(moves.any()):
                break
            rows = torch.nonzero(moves).flatten()
            on = on.clone()
            on[rows, index[rows]] ^= True
        return on, value


def _with_few_inputs(network: Network) -> Network:
    """The same gains with at most n + out inputs: ‖G‖ does not see a rotation of the inputs."""
    D = network.weights.feedthrough
    stacked = network.U if D is None else torch.cat([network.U, D])
    if stacked.shape[0] >= stacked.shape[1]:
        return network
    factor = torch.linalg.qr(stacked.mT, mode="r").R.mT
    n = network.W.shape[0]
    weights = replace(network.weights, input=factor[:n], feedthrough=None if D is None else factor[n:])
    return Network(weights, network.activation)


def _steep_and_flat(activation: Activation, size: int) -> tuple[Tensor, Tensor]:
    """For each neuron a pre-activation with the largest and one with the smallest slope, far from kinks, (n,) each."""
    grid = torch.linspace(-50, 50, 2001, dtype=torch.float64)
    slopes = activation.derivative(grid[:, None].expand(-1, size))
    index = torch.arange(len(grid))[:, None]
    places = []
    for target in (slopes.amax(0), slopes.amin(0)):
        close = (slopes - target).abs() <= 1e-9
        run = index - torch.where(close, -1, index).cummax(0).values  # the length of the stretch that ends here
        longest, end = run.max(0)
        places.append(grid[end - longest // 2])
    return places[0], places[1]


def _pairs_with_slopes(network: Network, on: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs x ∓ td around inputs whose slopes are (if U allows) the given pattern, d the steepest direction there."""
    steep, flat = _steep_and_flat(network.activation, network.W.shape[0])
    v = torch.where(on, steep, flat)
    q = v - network.activation(v) @ network.W.mT
    x = torch.linalg.lstsq(network.U, (q - network.weights.bias).mT, driver="gelsd").solution.mT
    return steepest_pairs(network, x)


def steepest_pairs(network: Network, x: Tensor, z0: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pairs x ∓ td of several lengths, d the top right singular vector of the Jacobian at x: (batch · k, in) each."""
    J, _, _ = network.slopes(x, z0)
    _, H, _ = network.responses(J)
    d = torch.linalg.svd(network.gains(J, H), full_matrices=False).Vh[:, 0]
    reach = (H @ d[:, :, None]).abs().amax((1, 2))
    reach = torch.where(reach > 0, reach, 1.0)
    lengths = torch.tensor([20.0, 1.0, 0.1, 1e-2, 1e-3], dtype=torch.float64)
    t = (lengths[:, None] / reach)[:, :, None]
    return (x - t * d).flatten(0, 1), (x + t * d).flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class RegionWalk:
    """Ascent of the local gain over inputs: across one kink at a time, or along the steepest direction.

    For piecewise linear activations the gain has no gradient in x; what can be predicted is which flip raises it, and
    where the nearest input with that flip is. Each proposal is solved, and accepted if the gain did grow.

    Args:
        steps: proposals accepted or refused, per start.
        candidates: flips tried per step, best prediction first.
    """

    steps: int = 30
    candidates: int = 6

    def __post_init__(self) -> None:
        checks.whole_number("steps", self.steps)
        checks.whole_number("candidates", self.candidates)

    def find(self, network: Network, x: Tensor, generator: torch.Generator) -> AttainedRatio:
        """The best pair, starting at each row of x, (batch, in)."""
        low, high = network.activation.slope_intervals(network.W.shape[0])
        middle = (low + high) / 2
        J, v, z = network.slopes(x)
        value = torch.zeros(len(x), dtype=torch.float64)
        count = min(self.candidates, network.W.shape[0])
        for _ in range(self.steps):
            change = torch.where(middle < J, low - J, high - J)
            value, after, H = flip_gains(network, J, change)
            flips = torch.nan_to_num(after).topk(count, -1).indices  # (b, k)
            rows = H.gather(1, flips[:, :, None].expand(-1, -1, H.shape[2]))
            lead = v.gather(1, flips)
            cross = -(1.05 * lead + 1e-3 * lead.sign())[:, :, None] * rows / rows.square().sum(-1, keepdim=True)
            size = torch.linalg.vector_norm(x, dim=-1).clamp_min(1.0)
            wander = torch.randn(len(x), 2, x.shape[1], generator=generator, dtype=torch.float64)
            wander = wander / x.shape[1] ** 0.5 * size[:, None, None] * torch.tensor([0.3, 0.01])[:, None]
            proposals = x[:, None] + torch.cat([torch.nan_to_num(cross), wander], 1)
            k = proposals.shape[1]
            newJ, newv, newz = network.slopes(proposals.flatten(0, 1), z.repeat_interleave(k, 0))
            _, newH, _ = network.responses(newJ)
            gains = torch.linalg.matrix_norm(network.gains(newJ, newH), 2).reshape(len(x), k)
            best, index = torch.nan_to_num(gains).max(-1)
            chosen = torch.arange(len(x)) * k + index
            moves = (best > value * (1 + 1e-9))[:, None]
            x = torch.where(moves, proposals.flatten(0, 1)[chosen], x)
            J, v = torch.where(moves, newJ[chosen], J), torch.where(moves, newv[chosen], v)
            z = torch.where(moves, newz[chosen], z)
        return attained(network, *steepest_pairs(network, x, z), "walk over linear pieces")


@dataclass(frozen=True, kw_only=True)
class PairAscent:
    """Adam on log ‖Δy‖/‖Δx‖ over both inputs of each pair, through the implicit gradient, solves warm-started.

    Args:
        steps: number of steps.
        learning_rate: relative to the size of the inputs.
        distance: relative distance of the two inputs at the start.
    """

    steps: int = 100
    learning_rate: float = 0.02
    distance: float = 0.1

    def __post_init__(self) -> None:
        checks.whole_number("steps", self.steps)
        checks.number("learning_rate", self.learning_rate, low=0, low_open=True)
        checks.number("distance", self.distance, low=0, low_open=True)

    def find(self, network: Pairs, x: Tensor, generator: torch.Generator) -> AttainedRatio:
        """The best pair, one started at each row of x, (batch, in), along the steepest direction there."""
        size = max(1e-3, float(x.square().mean().sqrt()))
        length = self.distance * size * x.shape[1] ** 0.5
        first = x.clone().requires_grad_()
        second = (x + length * self._steepest(network, x, generator)).requires_grad_()
        optimiser = torch.optim.Adam([first, second], lr=self.learning_rate * size)
        z: Tensor | None = None
        tiny = torch.finfo(torch.float64).tiny
        best, ends = torch.zeros(len(x), dtype=torch.float64), (x, x)
        with torch.enable_grad():
            for _ in range(self.steps):
                y, z = _outputs(network, torch.cat([first, second]), z)
                change = torch.linalg.vector_norm(y[: len(x)] - y[len(x) :], dim=-1)
                moved = torch.linalg.vector_norm(first - second, dim=-1)
                ratio = (change / moved.clamp_min(tiny)).detach()
                better = (ratio > best)[:, None]
                best = torch.maximum(ratio, best)
                ends = (torch.where(better, first.detach(), ends[0]), torch.where(better, second.detach(), ends[1]))
                optimiser.zero_grad()
                (moved.clamp_min(tiny).log() - change.clamp_min(tiny).log()).sum().backward()
                optimiser.step()
        firsts, seconds = torch.cat([ends[0], first.detach()]), torch.cat([ends[1], second.detach()])
        return attained(network, firsts, seconds, "pair ascent")

    def _steepest(self, network: Pairs, x: Tensor, generator: torch.Generator) -> Tensor:
        """The unit direction in which each row is steepest, (batch, in): of all outputs, or of a few mixtures."""
        outputs = network.weights.out_features
        mixtures = torch.eye(outputs, dtype=torch.float64)
        if outputs > _MIXTURES:
            drawn = torch.randn(outputs, _MIXTURES, generator=generator, dtype=torch.float64)
            mixtures = torch.linalg.qr(drawn).Q.mT
        with torch.enable_grad():
            start = x.clone().requires_grad_()
            y, _ = _outputs(network, start, None)
            mixed = (y @ mixtures.mT).sum(0)
            rows = [torch.autograd.grad(entry, start, retain_graph=True)[0] for entry in mixed]
        return torch.linalg.svd(torch.stack(rows, 1), full_matrices=False).Vh[:, 0]


def _outputs(network: Pairs, x: Tensor, z0: Tensor | None) -> tuple[Tensor, Tensor]:
    """y of the rows of x through the implicit gradient, and the equilibria it was solved at."""
    stop = Stop(rtol=1e-8, atol=0.0)
    problem = network.weights.problem(x, network.activation)
    z = Implicit(stop=stop).equilibrium(problem, network.solver, stop, z0)
    return network.weights.readout(z, x), z.detach()


Search = PatternSearch | RegionWalk | PairAscent
