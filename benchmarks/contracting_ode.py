"""Random contracting neural ODEs: what is promised against what is measured, and the cost of a field evaluation.

For modules with parameters of all scales (``--models``): how many promises the checker proves of the rounded numbers,
by how much the rate of the slowest Jacobian at sampled slopes exceeds the promised one, and the largest gain at sampled
slopes and frequencies over the promised one. Then, side by side, one evaluation of a field with 64 implicit neurons for
128 rows, and the solve of an LBEN with the same weights that it contains. Draws the gains. ``--small`` takes seconds.
"""

from pathlib import Path

import command_line
import torch
from torch import Tensor

from contracting import ContractingODE, ReLU, Stop
from contracting.certificates.lure.records import GainCertificate
from contracting.plots.style import CERTIFIED, SEEN, axes_for_a_file, figure_of, finish
from equilibrium import explicit_weights, from_weights
from equilibrium.experiments.timing import Times, in_turn, spread, timer
from equilibrium.files import output_directory, write_figure

DOUBLE = torch.float64


def drawn(seed: int, scale: float, rate: float, gamma: float, *, feedback: bool = True) -> ContractingODE:
    """A module of a random size, every parameter of which has this scale."""
    torch.manual_seed(seed)
    inputs, states, neurons, outputs = (int(torch.randint(1, most, ())) for most in (4, 6, 9, 4))
    layer = ContractingODE(
        inputs, states, neurons, outputs, contraction_rate=rate, lipschitz=gamma, feedback=feedback, dtype=DOUBLE,
        epsilon=1e-4,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(scale * torch.randn_like(parameter))
        layer.parameterization.log_multiplier.clamp_(-4, 4)
        layer.parameterization.X.mul_(0.1)  # what makes the promises slack
    return layer


@torch.no_grad()
def measured(layer: ContractingODE, patterns: int = 64) -> tuple[float, float]:
    """The rate of the slowest Jacobian in the metric, and the largest gain, at random slopes of zeros and ones."""
    system, metric = layer.system(), layer.weights().metric
    assert metric is not None
    slopes = torch.cat([torch.rand(patterns, system.neurons).round(), torch.ones(1, system.neurons)]).to(DOUBLE)
    rate = -float(metric.matrix_measure(system.jacobians(slopes)).max())
    loop = torch.eye(system.neurons, dtype=DOUBLE) - system.D * slopes[:, None, :]

    def through(left: Tensor, right: Tensor, direct: Tensor) -> Tensor:
        return direct + (left * slopes[:, None, :]) @ torch.linalg.solve(loop, right.expand(len(slopes), -1, -1))

    A, B = through(system.B, system.C, system.A), through(system.B, system.D12, system.B2)
    C, D = through(system.D21, system.C, system.C2), through(system.D21, system.D12, system.D22)
    size = torch.linalg.matrix_norm(A, 2).max()
    gain = torch.linalg.matrix_norm(D, 2).max()
    for frequency in [0.0, *torch.logspace(-4, 1, 24, dtype=DOUBLE).tolist()]:
        resolvent = 1j * frequency * size * torch.eye(system.size) - A
        response = C.to(resolvent.dtype) @ torch.linalg.solve(resolvent, B.to(resolvent.dtype)) + D
        gain = torch.maximum(gain, torch.linalg.matrix_norm(response, 2).max())
    return rate, float(gain)


def cost(rounds: int) -> dict[str, Times]:
    """One evaluation of the field, and the solve of the network inside it."""
    torch.manual_seed(0)
    layer = ContractingODE(4, 8, 64, 4, activation=ReLU(), dtype=torch.float32).requires_grad_(False)
    weights, states = layer.weights(), torch.randn(128, 8)
    flow = layer.flow()
    assert weights.D is not None
    inside = explicit_weights(weights.D, weights.C, torch.eye(64), bias=weights.bias, metric=weights.multiplier)
    network = from_weights(inside, activation=ReLU(), stop=flow.stop or Stop())
    gap = (flow.activations(states) - network.solve(states).z).abs().max()
    assert gap < 1e-4, "both find the same w"
    people = {"field": timer(lambda: flow(0.0, states)), "solve": timer(lambda: network.solve(states))}
    return in_turn(people, rounds=rounds, shortest=0.2, budget=20.0)


def figure(promised: list[float], found: list[float], path: Path) -> None:
    """Gain measured against gain promised."""
    axes, ends = axes_for_a_file(), [min(promised), max(promised)]
    axes.loglog(promised, found, ".", color=SEEN, markersize=4, label="measured, a module each")
    axes.loglog(ends, ends, label="promised", **CERTIFIED)
    axes.set_ylim(ends[0] / 30, 2 * ends[1])  # modules that hardly react at all are below
    share = max(gain / bound for gain, bound in zip(found, promised, strict=True))
    title = f"No gain exceeds γ; the closest attains {share:.2%} of it"
    finish(axes, x="promised gain γ", y="largest gain", title=title)
    write_figure(path, figure_of(axes), dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = command_line.timed(command_line.parser(__doc__, "contracting-ode"), rounds=15, clock="cpu")
    parser.add_argument("--models", type=command_line.whole, help="modules (default 500)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    folder = output_directory(options.out)
    models = options.models or (20 if options.small else 500)
    claims, slack, gammas, gains = 0, [], [], []
    for seed in range(models):
        rate, gamma = 10.0 ** (seed % 5 - 2), 10.0 ** (3 * (0.618 * seed % 1) - 1.5)  # γ from 0.03 to 30
        layer = drawn(seed, 10.0 ** (seed % 4 - 2), rate, gamma, feedback=seed % 3 > 0)
        certificates = layer.certificates()
        claims += len(certificates)
        found, gain = measured(layer)
        slack.append((found - rate) / max(rate, abs(found)))
        gammas.append(gamma)
        gains.append(gain)
        assert found >= rate * (1 - 1e-6), f"seed {seed}: rate {found} of {rate}"
        assert gain <= gamma * (1 + 1e-6), f"seed {seed}: gain {gain} of {gamma}"
        assert all(c.gain == gamma for c in certificates if isinstance(c, GainCertificate))
    times = cost(options.rounds or (3 if options.small else 15))
    field, solve = times["field"], times["solve"]
    ratio, clock = field.over(solve, options.clock), options.clock
    share = max(g / b for g, b in zip(gains, gammas, strict=True))
    text = f"""{models} modules: {claims} of {2 * models} promises proved of the rounded numbers; none is exceeded
largest measured gain {share:.4f} of the promised one
least excess over the promised rate {min(slack):.2e} of it
{clock} time: field {field.text(clock, 1e-3)} ms, LBEN solve {solve.text(clock, 1e-3)} ms, ratio {spread(*ratio)}
"""
    command_line.finish(
        folder, text, ratios={"contracting ODE, 64 neurons, 128 rows, float32: field / solve": ratio},
        settings=command_line.settings(options), gains={"promised": gammas, "measured": gains}, slack=slack,
    )  # fmt: skip
    figure(gammas, gains, folder / "gain-measured.png")


if __name__ == "__main__":
    command_line.run(main)
