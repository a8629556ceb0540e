"""``square-wave``: fit a jump with bounded slopes: the function, its certified slope, its steepest measured slope."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from contracting import InputError
from equilibrium.experiments.options import Out, Small, Threads, numbers_or_none
from equilibrium.experiments.publishing import on_axes, publish, working_in
from equilibrium.experiments.square_wave.figures import COLOURS, plot_square_wave
from equilibrium.experiments.square_wave.study import WaveSettings, fit
from equilibrium.experiments.tables import Column, aligned

_COLUMNS = (
    Column("network", lambda fit: fit.name),
    Column("certified slope", lambda fit: fit.certified),
    Column("measured slope", lambda fit: fit.measured),
    Column("ratio", lambda fit: fit.measured / fit.certified),
    Column("error"),
)
_NOTES = """
measured slope: the steepest between two neighbours of a fine grid; error: root mean square at the fitted
points."""


def square_wave(
    lipschitz: Annotated[str, "Values of γ separated by commas; none means no bound."] = "2,5,10,none",
    seed: Annotated[int, "Of the weights."] = 0,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Fit a square wave with slopes bounded by γ, and measure the slopes."""
    gammas = numbers_or_none("--lipschitz", lipschitz, example="2,5,none", high=1e6)
    if len(gammas) > len(COLOURS):
        raise InputError(f"--lipschitz must have at most {len(COLOURS)} values, got {len(gammas)}")
    settings = WaveSettings(seed=seed)
    if small:
        settings = WaveSettings(seed=seed, hidden=10, steps=60, points=60, grid=1000)
    with working_in(out, threads=threads) as folder:
        fits = [fit(gamma, settings, progress=True) for gamma in gammas]
        publish(
            folder,
            f"{aligned(_COLUMNS, fits)}\n{_NOTES}",
            {"settings": settings, "fits": fits},
            draws={"square-wave": on_axes(plot_square_wave, fits)},
            small=small,
        )
