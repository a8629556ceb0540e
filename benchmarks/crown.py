"""Certified radii of perceptrons beside CROWN and α-CROWN of auto_LiRPA, and ℓ∞ constants beside its Jacobian bounds.

64-50-50-10 ReLU perceptrons on the digits of scikit-learn: trained, trained with noise, and with random weights. A
radius in ℓ2 is that within which the class of the network cannot change. auto_LiRPA runs in the environment that
make_crown.sh makes, and is reported as not installed without it. --small is a version of seconds.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import command_line
import torch
from torch import Tensor, nn

from equilibrium import (
    LocalSearch,
    certified_lipschitz,
    certified_radius,
    certified_within,
    from_sequential,
    pairwise_lipschitz,
)
from equilibrium.experiments.robustness.models import Images, load_images
from equilibrium.experiments.tables import Column, aligned
from equilibrium.files import output_directory
from equilibrium.lipschitz import Norm

HERE = Path(__file__).resolve().parent
DEFAULT_PYTHON = HERE / ".rivals-crown" / "bin" / "python"
_NOISE = 0.3  # standard deviation of the noise in training, in units of the brightest pixel
_RIVAL_ACCURACY = 1e-3  # auto_LiRPA's radii are searched to this share of themselves
KINDS = ("trained", "noise", "random")
METHODS = {"CROWN": "CROWN", "CROWN-Optimized": "α-CROWN"}


def trained(kind: str, sizes: tuple[int, ...], inputs: Tensor, labels: Tensor, epochs: int) -> nn.Sequential:
    """A ReLU perceptron in float64."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        modules += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*modules[:-1]).double()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(0 if kind == "random" else epochs):
        for rows in torch.randperm(len(inputs)).split(64):
            noise = _NOISE * torch.randn_like(inputs[rows]) if kind == "noise" else 0.0
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows] + noise), labels[rows]).backward()
            optimizer.step()
    return network


def by_rivals(
    python: Path, network: nn.Sequential, inputs: Tensor, labels: Tensor, threads: int
) -> dict[str, Any] | None:
    """The answer of crown_worker.py, or None where there is no environment."""
    if not python.is_file():
        return None
    layers = [(m.weight.detach(), m.bias.detach()) for m in network if isinstance(m, nn.Linear)]
    with tempfile.TemporaryDirectory() as folder:
        problem, answer = Path(folder) / "problem.pt", Path(folder) / "answer.pt"
        torch.save({"layers": layers, "inputs": inputs, "labels": labels, "accuracy": _RIVAL_ACCURACY}, problem)
        command = [python, HERE / "crown_worker.py", problem, answer, str(threads)]
        subprocess.run(command, check=True, stdout=sys.stderr, env={"OMP_NUM_THREADS": str(threads)})
        found: dict[str, Any] = torch.load(answer, weights_only=True)
        return found


def measured(kind: str, given: argparse.Namespace) -> dict[str, Any]:
    """One network: radii, constants and times, ours and theirs."""
    digits = load_images(Images.DIGITS, None)
    sizes = (64, 8, 6, 10) if given.small else (64, 50, 50, 10)
    pixels = (digits.train_inputs.double(), digits.test_inputs.double())
    network = trained(kind, sizes, pixels[0], digits.train_labels, 2 if given.small else 60)
    x = pixels[1][: given.images]
    with torch.no_grad():
        labels = network(x).argmax(-1)
        accuracy = float((labels == digits.test_labels[: given.images]).double().mean())
    layer = from_sequential(network)
    found: dict[str, Any] = {"network": kind, "images": len(x), "accuracy": 100 * accuracy}

    start = time.process_time()
    pairs = pairwise_lipschitz(layer)
    found["global seconds"] = time.process_time() - start
    some = slice(0, given.searched)
    search = LocalSearch(accuracy=given.accuracy)
    start = time.process_time()
    radius = certified_radius(layer, x[some], labels[some], pairs, local=search)
    found["ours"] = {"radius": radius.tolist(), "seconds": (time.process_time() - start) / len(radius)}
    start = time.process_time()
    found["constant"] = certified_lipschitz(layer, norm=Norm.LINF).bound
    found["constant seconds"] = time.process_time() - start

    rivals = by_rivals(given.rivals, network, x, labels, given.threads)
    if rivals is None:
        return found
    found["versions"] = rivals["versions"]
    found["their constant"] = float(rivals["jacobian"].max())
    found["their constant seconds"] = rivals["jacobian_seconds"]
    for method, name in METHODS.items():
        theirs = rivals[method]
        proof = certified_within(layer, x, labels, theirs["high"], constants=pairs, search=search)
        found[name] = {
            "radius": theirs["low"].tolist(),
            "seconds": theirs["seconds"] / len(x),
            "larger": 100 * float(proof.proved.double().mean()),
            "not larger": torch.nonzero(~proof.proved).flatten().tolist(),
        }
    return found


def table(results: list[dict[str, Any]], searched: int) -> str:
    """Radii and constants side by side."""
    rows = [(found, name) for found in results for name in ("ours", *METHODS.values()) if name in found]

    def radius(row: tuple[dict[str, Any], str]) -> float:
        return sum(row[0][row[1]]["radius"][:searched]) / min(searched, row[0]["images"])

    radii = aligned(
        (
            Column("network", lambda row: row[0]["network"]),
            Column("radius by", lambda row: row[1]),
            Column("mean", radius, ".4f"),
            Column("ours larger, %", lambda row: f"{row[0][row[1]].get('larger', float('nan')):.1f}"),
            Column("CPU s/image", lambda row: row[0][row[1]]["seconds"], ".3f"),
        ),
        rows,
    )
    constants = aligned(
        (
            Column("network", lambda found: found["network"]),
            Column("ℓ∞ constant, ours", lambda found: found["constant"], ".2f"),
            Column("CPU s", lambda found: found["constant seconds"], ".2f"),
            Column("auto_LiRPA's", lambda found: f"{found.get('their constant', float('nan')):.2f}"),
            Column("its CPU s", lambda found: f"{found.get('their constant seconds', float('nan')):.2f}"),
        ),
        results,
    )
    count, images = min(searched, results[0]["images"]), results[0]["images"]
    missing = "" if "versions" in results[0] else "\nauto_LiRPA is not installed: run benchmarks/make_crown.sh.\n"
    return f"""{radii}

mean: of the first {count} images; ours larger: percent of {images} images for which we prove a radius that the other
one does not prove (a tie counts against us); CPU s: processor seconds in one run.

{constants}
{missing}"""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few seconds' version")
    parser.add_argument("--networks", help=f"by commas (default {','.join(KINDS)}; with --small random)")
    parser.add_argument("--images", type=command_line.whole, help="test images, the first ones (default 200)")
    parser.add_argument("--searched", type=command_line.whole, help="images whose radius we search (default 20)")
    parser.add_argument("--accuracy", type=command_line.residual, default=0.01, help="of our radii (default 0.01)")
    parser.add_argument("--rivals", type=command_line.path, default=DEFAULT_PYTHON, help="python with auto_LiRPA")
    parser.add_argument("--threads", type=command_line.whole, default=1)
    parser.add_argument("--out", type=command_line.path, default=Path("out/crown"))
    given = parser.parse_args(arguments)
    given.images = given.images or (4 if given.small else 200)
    given.searched = given.searched or (4 if given.small else 20)
    kinds = given.networks.split(",") if given.networks else ["random"] if given.small else list(KINDS)
    if unknown := [name for name in kinds if name not in KINDS]:
        parser.error(f"--networks has the unknown name {unknown[0]!r}; known are {', '.join(KINDS)}")
    torch.set_num_threads(given.threads)
    folder = output_directory(given.out)
    results = [measured(kind, given) for kind in kinds]
    command_line.finish(folder, table(results, given.searched), networks=results)


if __name__ == "__main__":
    command_line.run(main)
