"""``contraction-cost``: train with and without a certified contraction rate, and tell what the rate costs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from contracting import InputError, checks
from equilibrium.experiments.contraction_cost.figures import draw_contraction_cost
from equilibrium.experiments.contraction_cost.study import (
    Asked,
    CostSettings,
    Kind,
    TrainedLayer,
    contraction_cost_of,
    cost_table,
    errors_of,
    named,
    paired_table,
)
from equilibrium.experiments.networks import digits_for
from equilibrium.experiments.options import Out, Small, Threads, numbers_or_none, words
from equilibrium.experiments.publishing import publish, working_in


def contraction_cost(
    rates: Annotated[str, "Rates to ask for, by commas; none asks for none."] = "none,0.2,0.5",
    parameterizations: Annotated[
        str, "How rates are built in, by commas: contractive, the complete one, or monotone, with an added term."
    ] = "contractive",
    seeds: Annotated[int | None, "Trainings per rate (default 5)."] = None,
    first_seed: Annotated[int, "The smallest seed; the others follow."] = 0,
    hidden: Annotated[int | None, "Neurons (default 64)."] = None,
    epochs: Annotated[int | None, "Passes over the training images (default 15)."] = None,
    lipschitz: Annotated[float, "Certified Lipschitz constant of every layer."] = 1.0,
    errors_only: Annotated[bool, "Only train, and compare the errors of equal seeds in pairs."] = False,
    threads: Threads = 1,
    out: Out = Path("out"),
    small: Small = False,
) -> None:
    """Train on digits with and without a certified contraction rate: errors, certificates, measured decay."""
    kinds = {kind.value: kind for kind in Kind}
    chosen = words("--parameterizations", parameterizations, example=", ".join(kinds))
    if unknown := set(chosen) - kinds.keys():
        raise InputError(f"--parameterizations has {', '.join(sorted(unknown))}; known are {', '.join(kinds)}")
    settings = CostSettings(
        kinds=tuple(kinds[name] for name in chosen),
        rates=numbers_or_none("--rates", rates, example="none,0.2,0.5", high=1, high_open=True, zero=True),
        seeds=checks.whole_number("--seeds", (2 if small else 5) if seeds is None else seeds),
        first_seed=checks.seed("--first-seed", first_seed),
        hidden=checks.whole_number("--hidden", (12 if small else 64) if hidden is None else hidden),
        epochs=checks.whole_number("--epochs", (1 if small else 15) if epochs is None else epochs),
        lipschitz=lipschitz,
    )
    with working_in(out, threads=threads) as folder:
        dataset = digits_for(0, small=small)
        about = (
            f"LBEN({dataset.features}, {settings.hidden}, {dataset.classes}, lipschitz={settings.lipschitz:g}) on "
            f"{dataset.name}, {settings.epochs} epochs, seeds {settings.first_seed} to {settings.all_seeds[-1]}, "
        )
        if errors_only:
            errors = errors_of(dataset, settings, said=_say_error)
            text = f"{about}difference ± its standard error:\n\n{paired_table(errors)}"
            found = [{"asked": named(asked), "test_errors": errors[asked]} for asked in errors]
            publish(folder, text, {"settings": settings, "errors": found}, table="table.md", small=small)
            return
        layers = contraction_cost_of(dataset, settings, said=_say)
        text = f"{about}mean ± standard deviation:\n\n{cost_table(layers)}"
        publish(
            folder,
            text,
            {"settings": settings, "layers": layers},
            draws={"contraction-cost": partial(draw_contraction_cost, layers)},
            table="table.md",
            small=small,
        )


def _say(layer: TrainedLayer) -> None:
    print(
        f"rate {named((layer.contraction_rate, layer.kind))}, "
        f"seed {layer.seed}: test error {layer.test_error:.2f} %, certified rate {layer.certified:.3f} "
        f"({layer.method}), slowest pair {layer.slowest:.3f}",
        flush=True,
    )


def _say_error(asked: Asked, seed: int, error: float) -> None:
    print(f"rate {named(asked)}, seed {seed}: test error {error:.2f} %", flush=True)
