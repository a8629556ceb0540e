"""``pendulum``: a damped pendulum from noisy samples, by a contracting neural ODE and by a free one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from contracting import InputError
from equilibrium.experiments.options import Jobs, LastingOut, Small, words
from equilibrium.experiments.pendulum.figures import plot_fits
from equilibrium.experiments.pendulum.study import INTEGRATORS, PendulumSettings, error_of_the_truth, fits
from equilibrium.experiments.publishing import on_axes, publish, working_in
from equilibrium.experiments.tables import Column, markdown

_COLUMNS = (
    Column("model"),
    Column("integrator"),
    Column("parameters", form="d"),
    Column("error at the samples", lambda fit: fit.train, form=".2f"),
    Column("in the window", lambda fit: fit.within),
    Column("after it", lambda fit: fit.beyond),
    Column("evaluations", form="d"),
    Column("certified rate", lambda fit: fit.rate, form=".2f"),
    Column("rate at rest", lambda fit: -fit.exponent, form=".2f"),
)
_NOTES = """
error at the samples: root mean square, in units of their noise, of which the start has its share: the
pendulum itself has {truth:.2f}; in the window and after it: root mean square error (rad
and rad/s) on swings that were not seen, within the seconds of the training and as many later; evaluations: of the
field, over both; certified rate: at which every two trajectories come together (negative: may part), per second; rate
at rest: that of the field linearised there, for the pendulum 0.75 per second."""


def pendulum(
    integrators: Annotated[str, "Integrators by name, separated by commas."] = "euler,rk4,dormand-prince",
    seed: Annotated[int, "Of the samples and the weights."] = 0,
    jobs: Jobs = 1,
    out: LastingOut = Path("out"),
    small: Small = False,
) -> None:
    """A damped pendulum learned from irregular noisy samples, contracting or free, by three integrators."""
    settings = PendulumSettings(seed=seed)
    if small:
        settings = PendulumSettings(
            seed=seed, trajectories=3, samples=5, window=1.0, neurons=3, iterations=2, refinements=1, euler=0.1,
            certified=False,
        )
    chosen = words("--integrators", integrators, example="euler,rk4")
    for name in chosen:
        if name not in INTEGRATORS.values():
            raise InputError(f"--integrators has no {name!r}; there are {', '.join(INTEGRATORS.values())}")
    with working_in(out) as folder:
        found, seconds = fits(settings, folder / "fits", chosen, jobs=jobs, progress=True)
        publish(
            folder,
            f"{markdown(_COLUMNS, found)}\n{_NOTES.format(truth=error_of_the_truth(settings))}",
            {"settings": settings, "fits": found},
            draws={"pendulum": on_axes(partial(plot_fits, window=settings.window), found)},
            timings=seconds,
            table="table.md",
            small=small,
        )
