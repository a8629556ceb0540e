"""Local constants and class proofs of small random networks against all patterns of activation.

With two inputs, the region of the plane in which given neurons are positive is cut out by lines, and the outputs are
affine in it: the largest drop over a disc is attained where two lines meet, where one meets the circle, or at the
farthest point of the circle. All 2ⁿ patterns together are the truth, to rounding. ``--small`` takes seconds.
"""

import argparse

import command_line
import torch
from torch import Tensor

from equilibrium import LBEN, EquilibriumLayer, certified_within, local_lipschitz
from equilibrium.local import LocalSearch

OUTPUTS, MOST = 3, 6  # MOST neurons: 64 patterns with 28 points each
ROOM = 1e-9  # Points on a border belong to both sides of it, and are computed to some 1e-13.


def drawn(seed: int) -> tuple[EquilibriumLayer, Tensor, float]:
    """A network, an input and a radius."""
    generator = torch.Generator().manual_seed(seed)
    neurons = 2 + seed % (MOST - 1)
    layer = LBEN(2, neurons, OUTPUTS, epsilon=0.3, dtype=torch.float64)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(1.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(1, 2, generator=generator, dtype=torch.float64)
    return layer, x, float(torch.empty(()).uniform_(0.2, 1.5, generator=generator))


@torch.no_grad()
def largest_drops(layer: EquilibriumLayer, x: Tensor, radius: float) -> Tensor:
    """The largest of yᵢ(x₀) − yⱼ(x₀) − (yᵢ(x) − yⱼ(x)) over the disc, (outputs, outputs)."""
    weights = layer.weights()
    W, U, b, C = weights.state.to_dense(), weights.input, weights.bias, weights.output
    n, (x0,), y0 = len(W), x, torch.full((OUTPUTS,), torch.nan, dtype=torch.float64)
    best = torch.full((OUTPUTS, OUTPUTS), -torch.inf, dtype=torch.float64)
    for code in range(2**n):
        on = torch.tensor([float(code >> i & 1) for i in range(n)], dtype=torch.float64)
        # z = on∘v with v = Wz + Ux + b, so that v = Kx + k; the pattern holds where ±v ≥ 0
        inverse = torch.linalg.inv(torch.eye(n, dtype=torch.float64) - W * on)
        K, k = inverse @ U, inverse @ b
        slope, offset = (C * on) @ K, (C * on) @ k + weights.output_bias
        rows = slope[None] - slope[:, None]  # (i, j): of yⱼ − yᵢ
        points = torch.cat([x, _crossings(K, k), _on_circle(K, k, x0, radius), _farthest(rows, x0, radius)])
        v = points @ K.T + k
        inside = ((2 * on - 1) * v >= -ROOM * (1 + v.abs())).all(-1)
        inside &= torch.linalg.vector_norm(points - x0, dim=-1) <= radius * (1 + ROOM)
        outputs = points @ slope.T + offset
        if bool(inside[0]):
            y0 = outputs[0]  # exactly, while a solve has an error of its own
        if bool(inside.any()):
            best = torch.maximum(best, (outputs[inside, None, :] - outputs[inside, :, None]).amax(0))
    return best - (y0[None] - y0[:, None])


def _crossings(K: Tensor, k: Tensor) -> Tensor:
    """Where two of the lines Kx + k = 0 meet."""
    i, j = torch.triu_indices(len(K), len(K), 1)
    pairs = torch.stack([K[i], K[j]], 1)
    regular = torch.linalg.det(pairs).abs() > 1e-12
    return torch.linalg.solve(pairs[regular], -torch.stack([k[i], k[j]], -1)[regular].unsqueeze(-1)).squeeze(-1)


def _on_circle(K: Tensor, k: Tensor, x0: Tensor, radius: float) -> Tensor:
    """Where a line meets the circle."""
    size = torch.linalg.vector_norm(K, dim=-1)
    K, k = K[size > 0] / size[size > 0, None], k[size > 0] / size[size > 0]
    distance = K @ x0 + k
    half = (radius**2 - distance.square()).clamp_min(0).sqrt()[:, None]  # a line farther away is ruled out later
    foot, along = x0 - distance[:, None] * K, torch.stack([-K[:, 1], K[:, 0]], -1)
    return torch.cat([foot + half * along, foot - half * along])


def _farthest(rows: Tensor, x0: Tensor, radius: float) -> Tensor:
    """Where each linear function is largest on the disc."""
    return x0 + radius * torch.nn.functional.normalize(rows.flatten(0, 1), dim=-1)


def compared(seed: int) -> dict[str, float]:
    """One network: certified over true drops, and whether its class is proved, refuted or open against the truth."""
    layer, x, radius = drawn(seed)
    truth = largest_drops(layer, x, radius)
    i, j = torch.triu_indices(OUTPUTS, OUTPUTS, 1)
    pairs = torch.eye(OUTPUTS, dtype=torch.float64)[j] - torch.eye(OUTPUTS, dtype=torch.float64)[i]
    certified = local_lipschitz(layer, x, radius, functionals=pairs).drops[0]
    moves = truth[i, j] > 1e-6  # an output that no neuron of the disc reaches does not move
    outputs = layer(x)[0].detach()
    label = outputs.argmax(-1, keepdim=True)
    left = outputs[label] - outputs - truth[label[0]]  # of each other class, the smallest lead over the disc
    left[label] = torch.inf
    found = certified_within(layer, x, label, radius, search=LocalSearch(branches=200))
    proved, refuted, stays = bool(found.proved), bool(found.refuted), bool(left.min() > 0)
    return {
        "ratio": float((certified[moves] / truth[i, j][moves]).mean()),
        "below": float((certified < truth[i, j] * (1 - 1e-7)).sum()),
        "wrong": float((proved and left.min() < -1e-7) or (refuted and left.min() > 1e-7)),
        "proved": float(proved),
        "refuted": float(refuted),
        "stays": float(stays),
        "open": float(not (proved or refuted)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=command_line.whole, default=None, help="networks (default 500)")
    parser.add_argument("--small", action="store_true", help="20 networks")
    options = parser.parse_args()
    count = options.count or (20 if options.small else 500)
    rows = [compared(seed) for seed in range(count)]
    ratios = torch.tensor([row["ratio"] for row in rows if row["ratio"] == row["ratio"]])
    total = {name: int(sum(row[name] for row in rows)) for name in rows[0] if name != "ratio"}
    middle, high, worst = (float(ratios.quantile(q)) for q in (0.5, 0.9, 1.0))
    print(f"{count} networks of 2 to {MOST} neurons against all patterns of activation")
    print(f"local constants: {total['below']} below the truth")
    print(f"over the truth: median {middle:.3f}, 90 % {high:.3f}, worst {worst:.3f}")
    print(
        f"class of one input: stays in {total['stays']}, proved {total['proved']}, refuted {total['refuted']}, "
        f"open {total['open']}, wrong {total['wrong']}"
    )


if __name__ == "__main__":
    command_line.run(main)
