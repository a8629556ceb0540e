"""The comparison of the solvers as text: one line per solver, and notes on what the columns mean."""

from __future__ import annotations

from collections.abc import Sequence

from equilibrium.experiments.common import aligned, number
from equilibrium.experiments.compare_solvers.study import Comparison, Measurement

_COLUMNS = ("solver", "family", "status", "steps", "maps", "ms/input", "residual", "distance", "predicted", "measured")
_LEFT = 3  # columns of text


def table(comparison: Comparison) -> str:
    """One line per solver at the tightest tolerance, fastest first, with what the columns mean and who refused."""
    tightest = [m for m in comparison.measurements if m.tolerance == comparison.tightest]
    tightest.sort(key=lambda m: (not m.converged, m.seconds / m.rows))
    lines = aligned(_COLUMNS, [_line(comparison, m) for m in tightest], left=_LEFT)
    title = (
        f"{comparison.rows} equilibria of {comparison.hidden_features} neurons, "
        f"every input to a relative residual of {comparison.tightest:g}"
    )
    return "\n".join([title, "", *lines, "", *_notes(comparison, tightest)])


def _line(comparison: Comparison, m: Measurement) -> tuple[str, ...]:
    record = comparison.solver(m.solver)
    status = "converged" if m.converged else ", ".join(f"{n} {name.lower()}" for name, n in m.status.items())
    return (
        m.solver,
        record.family,
        status,
        str(m.steps_max),
        str(m.map_evals),
        f"{1e3 * m.seconds / m.rows:.3g}",
        number(m.relative_residual, ".0e"),
        number(m.distance, ".0e"),
        number(record.factor, ".3f"),
        number(record.measured_factor, ".3f"),
    )


def _notes(comparison: Comparison, shown: Sequence[Measurement]) -> list[str]:
    notes = [
        "steps: of the slowest input (of torchdiffeq: time intervals); maps: applications of W or its resolvent to the",
        "batch; residual, distance: of the worst input, distance to the reference equilibrium; predicted, measured:",
        "contraction factor per step.",
    ]
    bounds = [m.error_bound for m in shown if m.error_bound is not None and m.converged]
    if bounds and comparison.reference.error_bound is not None:
        notes.append(
            f"Certified relative distance to the true equilibrium, in the metric: at most {max(bounds):.0e} for every "
            f"converged answer,\n{comparison.reference.error_bound:.0e} for the reference."
        )
    notes += [f"{m.solver}: on the first {m.rows} inputs only." for m in shown if m.rows < comparison.rows]
    refusals: dict[str, list[str]] = {}
    for record in comparison.solvers:
        if record.refused is not None:
            refusals.setdefault(record.refused, []).append(record.name)
    return notes + [f"refused: {', '.join(names)}: {reason}" for reason, names in refusals.items()]
