"""``square-wave``: fit a jump with bounded slopes: the function, its certified slope, its steepest measured slope."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from contracting import checks
from contracting.errors import InputError
from equilibrium.experiments.common import (
    SMALL_HELP,
    THREADS_HELP,
    aligned,
    clean_output,
    draw_figures,
    number,
    report,
    running_with,
)
from equilibrium.experiments.lists import numbers_or_none
from equilibrium.experiments.square_wave.study import Fit, WaveSettings, fit, shown_points, square_wave
from equilibrium.files import environment, write_json, write_text

_MOST = 5  # curves that one figure can show
_WINDOW = 0.5  # half the width of the figure of the steepest points


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def square_wave(
        lipschitz: Annotated[str, option(help="Values of γ separated by commas; none means no bound.")] = "2,5,10,none",
        seed: Annotated[int, option(help="Of the weights.")] = 0,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for figures, results.json and table.txt.")] = Path("out"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
    ) -> None:
        """Fit a square wave with slopes bounded by γ, and measure the slopes."""
        gammas = numbers_or_none("--lipschitz", lipschitz, example="2,5,none", high=1e6)
        if len(gammas) > _MOST:
            raise InputError(f"--lipschitz must have at most {_MOST} values, got {len(gammas)}")
        checks.seed("--seed", seed)
        settings = WaveSettings(seed=seed)
        if small:
            settings = WaveSettings(seed=seed, hidden=10, steps=60, points=60, grid=1000)
        with running_with(checks.whole_number("--threads", threads)), clean_output(out) as folder:
            _run(gammas, settings, folder, small)

    return square_wave


def _run(gammas: Sequence[float | None], settings: WaveSettings, folder: Path, small: bool) -> None:
    from equilibrium.experiments.square_wave.figures import plot_square_wave

    fits = [fit(gamma, settings, progress=True) for gamma in gammas]
    text = table(fits)
    print(text)
    x = shown_points(settings)
    shown = {
        "x": x.tolist(),
        "target": square_wave(x).tolist(),
        "networks": [_entry(one) for one in fits],
    }
    written = [
        write_json(folder / "results.json", {"environment": environment(), "settings": settings, "fits": fits}),
        write_text(folder / "table.txt", text + "\n"),
    ]
    draws = {
        "square-wave": partial(plot_square_wave, shown),
        "square-wave-jump": partial(plot_square_wave, shown, jump=_WINDOW),
    }
    report(written, draw_figures(folder, draws, small=small))


def _entry(one: Fit) -> dict[str, Any]:
    return {"name": _name(one), "y": one.y, "certified": one.certified, "measured": one.measured, "at": one.steepest}


def _name(one: Fit) -> str:
    return "no γ" if one.lipschitz is None else f"γ = {one.lipschitz:g}"


def table(fits: Sequence[Fit]) -> str:
    """One line per network."""
    lines = []
    for one in fits:
        values = (one.certified, one.measured, one.measured / one.certified, one.error)
        lines.append((_name(one), *map(number, values)))
    return "\n".join(
        [
            *aligned(("network", "certified slope", "measured slope", "ratio", "error"), lines),
            "",
            "measured slope: the steepest between two neighbours of a fine grid; error: root mean square at the fitted",
            "points.",
        ]
    )
