"""``contraction-cost``: train with and without a certified contraction rate, and tell what the rate costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from contracting import checks
from equilibrium.experiments.contraction_cost.figures import draw_contraction_cost
from equilibrium.experiments.contraction_cost.study import CostSettings, TrainedLayer, contraction_cost_of, cost_table
from equilibrium.experiments.networks import digits_for
from equilibrium.experiments.options import Out, Small, Threads, numbers_or_none
from equilibrium.experiments.publishing import publish, working_in


def contraction_cost(
    rates: Annotated[str, "Rates to ask for, by commas; none asks for none."] = "none,0.2,0.5",
    seeds: Annotated[int | None, "Trainings per rate (default 5)."] = None,
    hidden: Annotated[int | None, "Neurons (default 64)."] = None,
    epochs: Annotated[int | None, "Passes over the training images (default 15)."] = None,
    lipschitz: Annotated[float, "Certified Lipschitz constant of every layer."] = 1.0,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Train on digits with and without a certified contraction rate: errors, certificates, measured decay."""
    settings = CostSettings(
        rates=numbers_or_none("--rates", rates, example="none,0.2,0.5", high=1, high_open=True, zero=True),
        seeds=checks.whole_number("--seeds", (2 if small else 5) if seeds is None else seeds),
        hidden=checks.whole_number("--hidden", (12 if small else 64) if hidden is None else hidden),
        epochs=checks.whole_number("--epochs", (1 if small else 15) if epochs is None else epochs),
        lipschitz=lipschitz,
    )
    with working_in(out, threads=threads) as folder:
        dataset = digits_for(0, small=small)
        layers = contraction_cost_of(dataset, settings, said=_say)
        text = (
            f"LBEN({dataset.features}, {settings.hidden}, {dataset.classes}, lipschitz={settings.lipschitz:g}) on "
            f"{dataset.name}, {settings.epochs} epochs, {settings.seeds} seeds, mean ± standard deviation:\n\n"
            f"{cost_table(layers)}"
        )
        publish(
            folder,
            text,
            {"settings": settings, "layers": layers},
            draws={"contraction-cost": partial(draw_contraction_cost, layers)},
            table="table.md",
            small=small,
        )


def _say(layer: TrainedLayer) -> None:
    asked = "no rate" if layer.contraction_rate is None else f"c = {layer.contraction_rate:g}"
    print(
        f"{asked}, seed {layer.seed}: test error {layer.test_error:.2f} %, certified rate {layer.certified:.3f} "
        f"({layer.method}), slowest pair {layer.slowest:.3f}",
        flush=True,
    )
