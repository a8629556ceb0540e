"""Equilibrium networks on images: train three of them, certify them as they run, draw what they do.

An unbounded LBEN, a monDEQ (metric fixed to the identity) and an LBEN with a certified Lipschitz constant, on MNIST or
on CIFAR-10 from its binary files, by the same command. Writes results.json, figures and an animation.

    python demos/convolution.py --mnist FOLDER [--out out/convolution] [--epochs 3] [--channels 16]
    python demos/convolution.py --cifar FOLDER
    python demos/convolution.py --small          # scikit-learn's 8×8 digits, seconds
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from contracting.flows import PeacemanRachfordFlow
from contracting.integrators import RK4, DormandPrince, ExplicitEuler
from contracting.solve import Stop
from equilibrium import DouglasRachford, ForwardBackward, Implicit, PeacemanRachford
from equilibrium.artifacts import environment, output_directory, write_figure, write_json
from equilibrium.cifar import cifar10
from equilibrium.convolution import LBENConv2d, MetricShape
from equilibrium.convolution.plots import animate_relaxation, plot_convergence, plot_equilibrium, plot_filters
from equilibrium.data import Dataset, digits, mnist, subset
from equilibrium.lipschitz import PairAscent, lipschitz_report
from equilibrium.training import train

GAMMA = 1.0
MODELS: dict[str, dict[str, object]] = {
    "LBEN": {},
    "monDEQ": {"metric": MetricShape.IDENTITY},
    f"LBEN, certified {GAMMA:g}": {"lipschitz": GAMMA},
}
METHODS = {
    "Peaceman–Rachford": PeacemanRachford(),
    "Douglas–Rachford": DouglasRachford(),
    "forward–backward": ForwardBackward(),
    "Euler, firing rate": ExplicitEuler(),
    "RK4, Peaceman–Rachford flow": RK4(flow=PeacemanRachfordFlow()),
    "Dormand–Prince, firing rate": DormandPrince(),
}


def build(dataset: Dataset, options: dict[str, object], *, channels: int, stride: int, pool: int) -> LBENConv2d:
    colours, height, width = dataset.image_shape
    loose = Stop(rtol=2e-3, atol=0.0)  # of a training step; tests and figures are solved tightly
    return LBENConv2d(
        colours,
        channels,
        dataset.classes,
        image=(height, width),
        input_kernel_size=5,
        stride=stride,
        pool=pool,
        epsilon=0.3,
        stop=loose,
        backward=Implicit(stop=loose),
        **options,  # type: ignore[arg-type]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--mnist", type=Path, help="folder with the four files of MNIST")
    source.add_argument("--cifar", type=Path, help="folder with the binary files of CIFAR-10")
    source.add_argument("--small", action="store_true", help="8×8 digits and a small network")
    parser.add_argument("--out", type=Path, default=Path("out/convolution"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--train", type=int, help="train on the first images only")
    args = parser.parse_args()
    out = output_directory(args.out)
    if args.small:
        dataset, channels, stride, pool, epochs = subset(digits(), train=300, test=100), 4, 1, 5, 2
    else:
        dataset = mnist(args.mnist) if args.mnist is not None else cifar10(args.cifar)
        dataset = subset(dataset, train=args.train) if args.train is not None else dataset
        channels, stride, epochs = args.channels, 2, args.epochs
        pool = 4 if args.mnist is not None else 3
    results: dict[str, object] = {"dataset": dataset.name, "environment": environment(), "epochs": epochs}
    for name, options in MODELS.items():
        torch.manual_seed(0)
        layer = build(dataset, options, channels=channels, stride=stride, pool=pool)
        record = train(layer, dataset, epochs=epochs, batch_size=128, learning_rate=0.01, progress=True)
        row: dict[str, object] = {"test error in percent": record.test_error, "training seconds": record.seconds}
        few = dataset.test_inputs[:4]
        report = lipschitz_report(layer, few, searches=(PairAscent(steps=10 if args.small else 60),), starts=4)
        row |= {"certified": report.certified, "attained": report.attained, "attained/certified": report.ratio}
        if layer.parameterization.lipschitz is not None:
            row["built in"] = layer.parameterization.lipschitz
        results[name] = row
        print(name, row, flush=True)
        torch.save(layer.state_dict(), out / f"{name.split(',')[0].lower()}{'-bounded' if ',' in name else ''}.pt")
        if not options:
            draw(layer, dataset, out, small=args.small)
    print(write_json(out / "results.json", results))


def draw(layer: LBENConv2d, dataset: Dataset, out: Path, *, small: bool) -> None:
    images = dataset.test_inputs[:8].unflatten(-1, dataset.image_shape)
    write_figure(out / "filters.png", plot_filters(layer))
    write_figure(out / "equilibrium.png", plot_equilibrium(layer, images[0]))
    stop = Stop(rtol=1e-4 if small else 1e-5, atol=0.0, check_every=1)
    write_figure(out / "convergence.png", plot_convergence(layer, images, METHODS, stop=stop))
    animate_relaxation(
        layer, images[0], ExplicitEuler(step=0.2), out / "relaxation.gif", stop=Stop(rtol=1e-2, atol=0.0, check_every=1)
    )


if __name__ == "__main__":
    main()
