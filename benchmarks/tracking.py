"""Tracking a moving image: steps per frame cold and warm, whether a certified error was ever exceeded, and times.

Images move on circles of two pixels by bilinear interpolation, each stream another image. The tolerance is a share of
the typical size of z, in the metric. Every frame of every stream is compared with its equilibrium in float64. Cold
starts are the same certified method from zero, and a solve in float64 to a residual of 1e-6. Times are of one stream: a
solve from zero, the tracker, its module compiled where asked for, and DormandPrince from the last equilibrium; both
solves to a relative residual of the same share. An integrator knows no number of steps beforehand and no certified
error of a frame.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import command_line
import torch
from cases import Network, networks
from torch import Tensor

from contracting import DormandPrince, Stop
from equilibrium import FixedTracking, Tracker
from equilibrium.experiments.timing import in_turn, timer
from equilibrium.files import output_directory

RADIUS = 2.0  # pixels, of the circle that an image moves on
EXACT = Stop(rtol=1e-10, atol=1e-12)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network at one speed."""

    network: str
    factor: float
    lipschitz: float
    pixels: float
    frames: int
    cold: float
    usual: float
    warm: float
    most: int
    exceeded: int
    largest: float


def motion(images: Tensor, pixels: float) -> Iterator[Tensor]:
    """The images moved by so many pixels per frame, without end: (streams, features) each."""
    side = math.isqrt(images.shape[-1])
    low = images.min()
    bright = images.reshape(-1, 1, side, side) - low
    for frame in itertools.count():
        angle = torch.tensor(pixels / RADIUS * frame)
        shift = 2 * RADIUS / side * torch.stack([torch.cos(angle) - 1, torch.sin(angle)])
        turn = torch.cat([torch.eye(2), shift[:, None]], 1).expand(len(images), 2, 3)
        grid = torch.nn.functional.affine_grid(turn, list(bright.shape), align_corners=False)
        yield torch.nn.functional.grid_sample(bright, grid, align_corners=False).flatten(1) + low


def followed(network: Network, pixels: float, *, frames: int, streams: int, share: float) -> Row:
    layer, images = network.layer.float().requires_grad_(False), network.inputs[:streams]
    double = copy.deepcopy(layer).double()
    metric = double.weights().metric
    assert metric is not None
    size = float(metric.norm(double.solve(images.double(), stop=EXACT).z).median())
    tracker = Tracker(layer, tolerance=share * size)
    cold = float(tracker(images).steps.double().mean())
    usual = float(double.solve(images.double(), stop=Stop(rtol=1e-6, check_every=1)).steps.double().mean())
    steps, most, exceeded, largest = 0, 0, 0, 0.0
    for x in itertools.islice(motion(images, pixels), frames):
        found = tracker(x)
        exact = double.solve(x.double(), stop=EXACT, z0=found.equilibrium.double()).z
        error = metric.norm(found.equilibrium.double() - exact)
        off = (found.output.double() - double.weights().readout(exact, x.double())).norm(dim=-1)
        wrong = (error > found.error) | (off > found.output_error) | (found.error > tracker.tolerance)
        exceeded += int(wrong.sum())
        largest = max(largest, float((error / found.error).max()))
        steps, most = steps + int(found.steps.sum()), max(most, int(found.steps.max()))
    return Row(
        network=network.name,
        factor=tracker.certificate.factor,
        lipschitz=tracker.certificate.speed,
        pixels=pixels,
        frames=frames * len(images),
        cold=cold,
        usual=usual,
        warm=steps / (frames * len(images)),
        most=most,
        exceeded=exceeded,
        largest=largest,
    )


def times(network: Network, pixels: float, *, share: float, compiled: bool, small: bool) -> dict[str, str]:
    """Milliseconds of the processor per frame of one stream, with the fastest and the slowest round."""
    layer, image, stop = network.layer.float().requires_grad_(False), network.inputs[:1], Stop(rtol=share)
    frames = list(itertools.islice(motion(image, pixels), 20 if small else 500))
    frames += frames[::-1]  # there and back, so that no frame is far from the one before it
    tolerance = share * float(layer.weights().metric.norm(layer.solve(image).z))  # type: ignore[union-attr]
    tracker, moves = Tracker(layer, tolerance=tolerance), torch.stack(frames).diff(dim=0).norm(dim=-1).max()

    def over(run: Callable[[Tensor], object]) -> Callable[[], object]:
        stream = itertools.cycle(frames)
        return lambda: run(next(stream))

    last = {"z": layer.solve(image).z}

    def integrated(x: Tensor) -> None:
        last["z"] = layer.solve(x, DormandPrince(), stop=stop, z0=last["z"]).z

    runs = {
        "solve from zero": over(lambda x: layer.solve(x, stop=stop)),
        "tracker": over(tracker),
        "DormandPrince from the last": over(integrated),
    }
    if compiled:
        module = FixedTracking(layer, tolerance=tolerance, step_bound=1.01 * float(moves))
        state = {"now": module.follow(image, module.start(image), tolerance)[0].state}
        fast = torch.compile(module, fullgraph=True)

        def stepped(x: Tensor) -> None:
            state["now"] = fast(x, state["now"]).state

        runs["compiled, fixed steps"] = over(stepped)
    timers = {name: timer(run) for name, run in runs.items()}
    found = in_turn(timers, rounds=3 if small else 9, shortest=0.02, budget=9)
    return {name: entry.text("cpu", 1e-3) for name, entry in found.items()}


def table(rows: list[Row], clocks: dict[str, dict[str, str]], share: float) -> str:
    lines = [
        f"Steps per frame to a certified error of {share:g} of the size of z",
        "",
        "| network | ρ | L | pixels per frame | from zero, certified | solve to 1e-6 | warm, mean | warm, most | "
        "exceeded | largest error/bound |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.network} | {row.factor:.3f} | {row.lipschitz:.3g} | {row.pixels:g} | {row.cold:.1f} | "
            f"{row.usual:.1f} | {row.warm:.2f} | {row.most} | {row.exceeded} of {row.frames} | {row.largest:.2f} |"
        )
    names = list(next(iter(clocks.values())))
    lines += ["", "Milliseconds of the processor per frame of one stream", "", f"| network | {' | '.join(names)} |"]
    lines += ["|" + "---|" * (len(names) + 1)]
    lines += [f"| {name} | {' | '.join(entry[each] for each in names)} |" for name, entry in clocks.items()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=command_line.path, help="folder of checkpoints of the reference code")
    parser.add_argument("--data-dir", type=command_line.path, help="folder with the MNIST files, for the checkpoints")
    parser.add_argument("--frames", type=command_line.whole, help="frames of each stream at the slowest speed")
    parser.add_argument("--streams", type=command_line.whole, help="images that move at once (default 100)")
    parser.add_argument("--share", type=command_line.residual, default=0.005, help="tolerance over the size of z")
    parser.add_argument("--compile", action="store_true", help="time the compiled module as well")
    parser.add_argument("--out", type=Path, default=Path("out") / "tracking-benchmark")
    parser.add_argument("--small", action="store_true", help="a few seconds' version")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    frames = given.frames or (30 if given.small else 1000)
    streams = given.streams or (10 if given.small else 100)
    chosen = networks(given.checkpoints, given.data_dir, small=given.small)
    folder, rows, clocks = output_directory(given.out), [], {}
    for network in chosen:
        for pixels, count in ((0.002, frames), (0.01, -(-frames // 10)), (0.05, -(-frames // 10))):
            rows.append(followed(network, pixels, frames=count, streams=streams, share=given.share))
        clocks[network.name] = times(network, 0.002, share=given.share, compiled=given.compile, small=given.small)
        print(f"{network.name}: {rows[-3].exceeded} of {rows[-3].frames} frames exceeded", flush=True)
    settings = {"frames": frames, "streams": streams, "share": given.share}
    command_line.finish(
        folder, table(rows, clocks, given.share), settings=settings, rows=[asdict(row) for row in rows], clocks=clocks
    )


if __name__ == "__main__":
    command_line.run(main)
