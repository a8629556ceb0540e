"""The page: four panels, a table of certificates and one of solvers, made of an answer."""

from __future__ import annotations

import html
import itertools

import torch
from torch import Tensor

from contracting import LiftedForm
from contracting.display import html_table
from contracting.metrics import Metric
from contracting.plots.style import BLUE, BOUND, CERTIFIED, GREEN, ORANGE, PURPLE, SKY, VERMILION, shown
from contracting.simulation.balls import unit_sphere
from equilibrium.explorer.answer import NAMED, Answer, Run
from equilibrium.explorer.svg import Panel, page

_PROVED, _LIMIT = str(CERTIFIED["color"]), str(BOUND["color"])  # dashed and dotted, as in every figure
_DASHED, _DOTTED = "7 3", "2 2"
_ARROWS = 15  # The field is shown at so many points along each side.
_SHAPE = 1.4  # The axes of the portrait are about so many times as wide as high.
_FEWEST = 1e-10  # What has fallen below is drawn there.
_SPLITTING = (BLUE, GREEN, SKY, "#000000")
_INTEGRATING = (VERMILION, ORANGE, PURPLE)
_POINTS = 5000  # Where a ball has no formula, so many points of its sphere are looked at.
_ANGLES = 120  # The outline of a ball has so many points.


def picture(answer: Answer, *, plane: tuple[int, int] = (0, 1)) -> str:
    """The four panels as SVG.

    Args:
        answer: what is shown.
        plane: the two units of the phase portrait, from 0.
    """
    return page([portrait(answer, plane), trajectories(answer), numerical_range(answer), convergence(answer)])


def portrait(answer: Answer, plane: tuple[int, int] = (0, 1)) -> Panel:
    """The field in the plane of two units, two trajectories, and balls that are proved to hold their images."""
    plane_of, motion = [*plane], answer.motion
    centre, pair = motion.centre[:, plane_of], motion.pair[..., plane_of]
    known, rings = torch.cat([pair.flatten(0, 1), centre]), None
    if motion.certificate is not None and motion.radius is not None:
        rings = centre[:, None] + motion.radius[:, None, None] * _outline(motion.certificate.metric, plane)
        known = torch.cat([known, rings[0]])  # the first and largest ball is seen as a whole
    known = torch.nan_to_num(known)
    middle, reach = (known.amax(0) + known.amin(0)) / 2, 0.53 * float((known.amax(0) - known.amin(0)).amax()) + 1e-3
    window = [(float(m) - reach, float(m) + reach) for m in middle]
    what = "state" if answer.setting.flow in ("Hopfield", "Peaceman–Rachford") else "activation"
    across, up = (f"{what} of unit {unit + 1}" for unit in plane)
    flat = answer.setting.size == 2
    panel = Panel(
        title=f"The {answer.setting.flow} flow" + ("" if flat else ", arrows with the other units at rest"),
        x=window[0], y=window[1], labels=(across, up), equal=True,
    )  # fmt: skip
    for stroke in _field(answer, plane, window):
        panel.line(stroke, "#bbbbbb", width=1)
    for count, at in enumerate(_apart(centre) if rings is not None else ()):
        assert rings is not None
        image, names = _pairs(motion.sphere[at][:, plane_of]), ("", "")
        if count == 0:
            names = ("image of the ball", "ball that is proved to hold it")
        if flat:
            panel.area(image, SKY, name=names[0])
        else:
            panel.dots(image, SKY, radius=1.5, name=names[0])
        panel.line(_pairs(torch.cat([rings[at], rings[at][:1]])), _PROVED, dash=_DASHED, name=names[1])
    for index, name in enumerate(("two trajectories", "")):
        panel.line(_pairs(pair[:, index]), "#000000", width=1.2, name=name)
    rest = answer.flow.init(answer.equilibrium[None])[:, plane_of]
    panel.dots(_pairs(rest), "#000000", radius=4, name="equilibrium")
    return panel


def trajectories(answer: Answer) -> Panel:
    """The distance of the two trajectories beside the slope that is proved and the one that nothing can exceed."""
    times, apart = answer.motion.times, answer.motion.apart / answer.motion.apart[0]
    bound, best = answer.bound.rate, answer.motion.certificate
    lines = [("two trajectories", apart, "#000000", "")]
    if best is not None:
        slope = torch.exp(-best.rate * times)
        lines.append((f"certified rate {shown(best.rate)}", slope, _PROVED, _DASHED))
    lines.append((f"upper bound {shown(bound)}", torch.exp(-bound * times), _LIMIT, _DOTTED))
    heights = torch.nan_to_num(torch.cat([line[1] for line in lines[:2]]), nan=1.0)
    low, high = float(heights.min().clamp_min(_FEWEST)), float(heights.max().clamp_max(1e6))
    title = "Nothing is proved of this flow"
    if best is not None:
        title = f"Proved: distances shrink by e^(−{shown(best.rate)} t) at least"
        if not best.contracting:
            title = f"Proved: distances grow by e^({shown(-best.rate)} t) at most"
    panel = Panel(
        title=title, x=(0.0, float(times[-1])), y=(low / 2, 2 * high), log=True,
        labels=("time (time constants of the flow)", "distance relative to its start"),
    )  # fmt: skip
    for name, curve, colour, dash in lines:
        panel.line(zip(times.tolist(), curve.tolist(), strict=True), colour, dash=dash, name=name)
    return panel


def numerical_range(answer: Answer) -> Panel:
    """The numerical range of the weight, as it is and for the best Q, with the parabola and the half-plane."""
    everything = torch.cat([points for points in answer.ranges.values()])
    s = 1.0 if answer.parabola is None else 1 - answer.parabola
    height = 1.15 * max(float(everything.imag.abs().max()), 1.0)
    left, right = min(float(everything.real.min()), -0.5) - 0.2, max(1.0, s, float(everything.real.max())) + 0.3
    fits = "The parabola test is not for slopes below 0" if answer.parabola is None else (
        f"With the best Q the range lies in the parabola of rate {shown(answer.parabola)}"
    )  # fmt: skip
    panel = Panel(title=fits, x=(left, right), y=(-height, height), labels=("real part", "imaginary part"), equal=True)
    for (name, points), colour in zip(answer.ranges.items(), (ORANGE, SKY), strict=False):
        panel.area(zip(points.real.tolist(), points.imag.tolist(), strict=True), colour, name=f"range, {name}")
    far = 10 * height
    if answer.parabola is not None and s > 0:
        rising = torch.linspace(-far, far, 401, dtype=torch.float64)
        bent = zip((s - rising**2 / (4 * s)).tolist(), rising.tolist(), strict=True)
        panel.line(bent, _PROVED, dash=_DASHED, name=f"parabola of rate {shown(1 - s)}")
    panel.line([(1.0, -far), (1.0, far)], "#000000", dash="8 3 2 3", name="Condition 1 for Q: left of this")
    return panel


def convergence(answer: Answer) -> Panel:
    """The residual after every step: splittings and Newton's methods solid and blue, integrators dashed and red."""
    runs = [run for run in answer.runs if run.residual]
    last = max((run.steps[-1] for run in sorted(runs, key=lambda run: run.steps[-1])[:-1]), default=10)
    panel = Panel(
        title="The same equilibrium: split, or integrate", x=(0.0, 1.1 * last + 1), y=(_FEWEST, 10.0), log=True,
        labels=("iteration or time step", "relative residual"),
    )  # fmt: skip
    colours = {True: itertools.cycle(_INTEGRATING), False: itertools.cycle(_SPLITTING)}
    for run in sorted(runs, key=lambda run: run.name in NAMED):  # the others first, below
        points = [(float(k), max(r, _FEWEST)) for k, r in zip(run.steps, run.residual, strict=True)]
        if run.name in NAMED:
            colour = next(colours[_integrates(run)])
            panel.line(points, colour, dash=_DASHED if _integrates(run) else "", name=run.name)
        else:
            panel.line(points, "#e6a58a" if _integrates(run) else "#a8c4dd", width=0.8)
    return panel


def certificates(answer: Answer) -> str:
    """Every certificate, what bounds them all, and what did not apply, as a table of HTML."""
    lines = [(f"{c.rate:.6f}", type(c.metric).__name__, c.method, "proved") for c in answer.certificates]
    lines.append((f"{answer.bound.rate:.6f}", "any norm", answer.bound.method, "upper bound"))
    lines += [("–", "", name, _short(reason)) for name, reason in answer.refusals.items()]
    head = ("rate", "norm", "method", "")
    return html_table(lines, head=head, caption=f"Contraction rates of the {answer.setting.flow} flow")


def solvers(answer: Answer) -> str:
    """Every solver that was run, the fewest applications of W first, as a table of HTML."""
    able = [run for run in answer.runs if run.refused is None]
    lines = [
        (run.name, run.family, run.status, str(run.steps[-1]), str(run.map_evals), f"{1e3 * run.seconds:.1f}")
        for run in sorted(able, key=lambda run: (run.status != "converged", run.map_evals))
    ]
    head = ("solver", "family", "status", "steps", "maps", "ms, once")
    table = html_table(lines, head=head, caption="From z = 0 to a relative residual of 1e-8, 200 steps at most")
    refusals = (f"<p>{run.name} refused: {html.escape(run.refused)}</p>" for run in answer.runs if run.refused)
    return table + "".join(refusals)


def tables(answer: Answer) -> str:
    """Both side by side, and how long the first answer took."""
    look = "display:flex;gap:4em;align-items:flex-start;flex-wrap:wrap;font-size:85%;white-space:nowrap"
    times = f"<p>first answered in {1e3 * answer.seconds:.0f} ms</p>"
    space = "<style>#answer td, #answer th {padding: 0 0.5em; text-align: left}</style>"
    return f'{space}<div style="{look}"><div>{certificates(answer)}{times}</div><div>{solvers(answer)}</div></div>'


def _short(reason: str) -> str:
    return reason if len(reason) <= 90 else reason[:89] + "…"


def refused(reason: str) -> str:
    """What stands on the page where a control says something that cannot be."""
    return f'<p style="color:{VERMILION}">{html.escape(reason)}</p>'


def _integrates(run: Run) -> bool:
    return run.family in ("ODE integrator", "torchdiffeq")


def _pairs(points: Tensor) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points.tolist()]


def _apart(path: Tensor) -> list[int]:
    """Five moments, equally far apart along the way, so that the balls do not pile up at the equilibrium."""
    way = torch.cat([path.new_zeros(1), torch.nan_to_num(path).diff(dim=0).norm(dim=-1).cumsum(0)])
    return sorted({int((way - share * way[-1]).abs().argmin()) for share in torch.linspace(0, 1, 5).tolist()})


def _outline(metric: Metric, plane: tuple[int, int]) -> Tensor:
    """The shadow of the unit ball in the plane, in order around it: (points, 2).

    A direction u is reached by the ball up to h(u), the dual norm of u, and the boundary is h·u + h'·u⊥. Where there is
    no dual, it goes through the points of the sphere that are farthest in each direction.
    """
    angle = torch.linspace(0, 2 * torch.pi, _ANGLES + 1, dtype=torch.float64)[:-1]
    if isinstance(metric, LiftedForm):
        sphere = unit_sphere(metric, _POINTS)[:, list(plane)]
        return sphere[(torch.stack([angle.cos(), angle.sin()], -1) @ sphere.mT).argmax(-1)]
    small = 1e-5

    def support(at: Tensor) -> Tensor:
        directions = torch.zeros(len(at), metric.size, dtype=torch.float64)
        directions[:, plane[0]], directions[:, plane[1]] = at.cos(), at.sin()
        return metric.dual().norm(directions)

    h, slope = support(angle), (support(angle + small) - support(angle - small)) / (2 * small)
    return torch.stack([h * angle.cos() - slope * angle.sin(), h * angle.sin() + slope * angle.cos()], -1)


@torch.no_grad()
def _field(
    answer: Answer, plane: tuple[int, int], window: list[tuple[float, float]]
) -> list[list[tuple[float, float]]]:
    """An arrow at each point of a grid, along the field, the other units at rest."""
    (left, right), (low, high) = window
    wider = _SHAPE * (right - left) / 2 - (right - left) / 2  # the axes are wider than high, with equal units
    across = torch.linspace(left - wider, right + wider, round(_SHAPE * _ARROWS) + 2, dtype=torch.float64)[1:-1]
    points = torch.cartesian_prod(across, torch.linspace(low, high, _ARROWS + 2, dtype=torch.float64)[1:-1])
    rest = torch.nan_to_num(answer.flow.init(answer.equilibrium[None])[0])
    states = rest.repeat(len(points), 1)
    states[:, list(plane)] = points
    along = answer.flow(0.0, states)[:, list(plane)]
    size = along.norm(dim=-1, keepdim=True)
    spacing = (high - low) / (_ARROWS + 1)
    arrow = spacing * 0.8 * along / size.clamp_min(1e-300) * (size / (size + size.median() / 2 + 1e-300))
    aside = 0.18 * torch.stack([-arrow[:, 1], arrow[:, 0]], -1)
    tail, tip, neck = points - arrow / 2, points + arrow / 2, points + arrow / 5
    return [_pairs(stroke) for stroke in torch.stack([tail, tip, neck + aside, tip, neck - aside], 1)]
