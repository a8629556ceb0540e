"""What the page shows is right: computed again here with the library's own, slower and more accurate, means."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from contracting import (
    FullP,
    InputError,
    ReLU,
    WeightedL1,
    WeightedLinf,
    certify,
    check,
    default_solvers,
    report,
    simulate,
)
from contracting.certificates import system_of
from contracting.simulation.balls import unit_sphere
from equilibrium import LBEN, save_reference
from equilibrium.explorer.answer import AT_ONCE, NAMED, Answer, answer, completed, growing
from equilibrium.explorer.page import _outline, certificates, picture, solvers, tables
from equilibrium.explorer.script import script
from equilibrium.explorer.setting import ACTIVATIONS, EXAMPLES, FLOWS, Setting, drawn, parsed, written
from equilibrium.explorer.svg import Panel, page, ticks

SPIRAL = EXAMPLES["a spiral"]


@pytest.fixture(scope="module")
def spiral() -> Answer:
    return answer(SPIRAL)


@pytest.mark.parametrize("flow", FLOWS)
def test_certificates_hold_and_balls_hold_their_images(flow: str) -> None:
    found = answer(replace(SPIRAL, flow=flow))
    assert found.certificates and found.equilibrium.isfinite().all()
    for certificate in found.certificates:
        assert check(certificate, system_of(found.flow)) > 0
        assert certificate.rate <= found.bound.rate + 1e-9
    motion = found.motion
    assert motion.radius is not None and motion.certificate is found.certificates[0]
    reached = motion.certificate.metric.norm(motion.sphere - motion.centre[:, None]).amax(1)
    assert bool((reached <= motion.radius * (1 + 1e-4)).all())
    allowed = motion.apart[0] * torch.exp(-motion.certificate.rate * motion.times)
    assert bool((motion.apart <= allowed * (1 + 1e-4)).all())
    exact = simulate(found.flow, motion.pair[0], motion.times)  # adaptive steps to a tolerance of 1e-9
    assert torch.allclose(exact.states, motion.pair, atol=2e-4)
    assert torch.allclose(found.flow(0.0, found.flow.init(found.equilibrium[None])), torch.zeros(2).double(), atol=1e-8)


@pytest.fixture(scope="module")
def whole(spiral: Answer) -> Answer:
    return completed(spiral)


def test_solvers_agree_on_the_equilibrium(spiral: Answer, whole: Answer) -> None:
    assert [run.name for run in whole.runs] == [*default_solvers()] and {run.name for run in spiral.runs} == {*AT_ONCE}
    refused = {run.name for run in whole.runs if run.refused is not None}
    assert refused == {"FISTA"}  # whose W must be self-adjoint
    for run in whole.runs:
        if run.name not in refused:
            assert run.status == "converged" and run.residual[-1] < 1e-7 and run.steps[-1] <= 200, run
    assert max(c.rate for c in whole.certificates) >= certify(spiral.flow).rate - 1e-6
    assert whole.bound.rate == pytest.approx(report(spiral.flow).bound.rate)
    assert whole.motion.certificate is whole.certificates[0]


def test_an_answer_grows_by_one_piece_at_a_time(spiral: Answer, whole: Answer) -> None:
    stages, before = 0, spiral
    for found in growing(spiral):
        more = [len(found.runs) - len(before.runs), found.bound is not before.bound]
        more += [len(found.certificates) + len(found.refusals) - len(before.certificates) - len(before.refusals)]
        assert sorted(more) == [0, 0, 1] and found.motion.certificate is found.certificates[0]
        assert found.equilibrium is spiral.equilibrium and found.certificates[0].rate >= before.certificates[0].rate
        before, stages = found, stages + 1
    assert stages > 30 and [run.name for run in before.runs] == [run.name for run in whole.runs]


def test_what_is_not_proved_is_not_drawn_as_proved() -> None:
    found = answer(EXAMPLES["Condition 1 holds, no metric contracts"])
    assert found.motion.certificate is not None and found.motion.certificate.rate < 0
    assert "Proved: distances grow by" in picture(found)
    wild = answer(Setting(weight=((3.0, 4.0), (-1.0, 2.0)), q=(0.0, 0.0), activation="ReLU"))
    assert wild.problem.metric is None and {run.name: run.status for run in wild.runs if run.refused is None}
    assert any(run.refused for run in wild.runs) and "NaN" not in picture(wild)


@pytest.mark.parametrize("name", EXAMPLES)
def test_pictures_are_drawings_without_a_number_that_is_none(name: str) -> None:
    found = answer(EXAMPLES[name])
    drawing = picture(found, plane=(0, found.setting.size - 1))
    root = ElementTree.fromstring(drawing)
    numbers = [float(x) for x in re.findall(r"-?\d+\.\d", drawing)]
    assert root.tag.endswith("svg") and len(drawing) < 150_000 and max(map(abs, numbers)) < 1e5
    assert not re.search(r"nan|inf\b", drawing)
    words = " ".join(text.text or "" for text in root.iter() if text.tag.endswith("text"))
    assert found.motion.certificate is not None and f"{abs(found.motion.certificate.rate):.3g}" in words
    assert f"unit {found.setting.size}" in words and "PeacemanRachford" in words


def test_tables_say_what_was_found(whole: Answer) -> None:
    assert all(f"{c.rate:.6f}" in certificates(whole) and c.method in certificates(whole) for c in whole.certificates)
    assert "upper bound" in certificates(whole) and "FISTA refused" in solvers(whole)
    assert certificates(whole) in tables(whole) and "first answered in" in tables(whole)


@pytest.mark.parametrize("metric", [
    FullP(torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]]).double()),
    WeightedL1(torch.tensor([1.0, 2.0, 0.5]).double()), WeightedLinf(torch.tensor([1.0, 2.0, 0.5]).double()),
])  # fmt: skip
def test_the_outline_is_the_shadow_of_the_ball(metric: FullP) -> None:
    outline = _outline(metric, (0, 2))
    points = unit_sphere(metric, 20_000)[:, [0, 2]]
    angles = torch.linspace(0, 2 * torch.pi, 60).double()
    directions = torch.stack([angles.cos(), angles.sin()])
    outer, inner = (outline @ directions).amax(0), (points @ directions).amax(0)
    assert bool((inner <= outer * (1 + 2e-3)).all()) and bool((inner >= 0.93 * outer).all())


def test_settings_come_back_from_files(tmp_path: Path) -> None:
    setting = replace(drawn(4, 3), flow="forward–backward", step=0.7, skewness=-1.5, activation="ReLU")
    assert Setting.read(setting.save(tmp_path / "problem.json")) == setting
    assert parsed(written(setting.weight)) == setting.weight
    assert parsed("1, −2; 3 4") == ((1.0, -2.0), (3.0, 4.0))
    layer = LBEN(3, 6, 2, dtype=torch.float64)
    save_reference(layer, tmp_path / "layer.pt")
    read = Setting.read(tmp_path / "layer.pt")
    weights = layer.weights().dense()
    assert torch.allclose(read.W, weights.state.to_dense().detach(), atol=1e-6) and read.activation == "ReLU"
    assert torch.allclose(torch.tensor(read.q).double(), weights.bias.detach(), atol=1e-6)
    assert isinstance(read.sigma, ReLU) and answer(read).certificates


def test_the_skew_part_is_scaled() -> None:
    W, twice = SPIRAL.W, replace(SPIRAL, skewness=2.0).W
    assert torch.allclose(W, torch.tensor(SPIRAL.weight).double())
    assert torch.allclose(twice - twice.mT, 2 * (W - W.mT)) and torch.allclose(twice + twice.mT, W + W.mT)


@pytest.mark.parametrize("text", ["1 2", "1 2; 3", "a b; c d", "", "1", "nan 1; 1 1"])
def test_what_is_no_matrix_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="W|weight"):
        Setting(weight=parsed(text), q=(0.0, 0.0))


@pytest.mark.parametrize(("change", "name"), [
    ({"q": (1.0,)}, "q"), ({"q": (1.0, float("inf"))}, "q"), ({"activation": "GELU"}, "activation"),
    ({"flow": "reversed"}, "flow"), ({"step": 0.0}, "step"), ({"skewness": float("nan")}, "skewness"),
])  # fmt: skip
def test_other_settings_are_refused(change: dict[str, object], name: str) -> None:
    with pytest.raises(InputError, match=name):
        replace(SPIRAL, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ['{"weight": 3, "q": [1]}', '{"weight": [[1, 2], [3, 4]]}', "{not json", "{}",
                                     '{"weight": [["a", 2], [3, 4]], "q": [1, 2]}'])  # fmt: skip
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "problem.json"
    path.write_text(content)
    with pytest.raises(InputError):
        Setting.read(path)
    with pytest.raises(InputError):
        Setting.read(tmp_path / "nothing.json")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_answered(activation: str) -> None:
    assert answer(replace(SPIRAL, activation=activation)).certificates


def test_a_script_of_ten_lines_gives_the_same_numbers(
    whole: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(whole)
    assert len(text.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(text, {})
    said = capsys.readouterr().out
    rates = [float(rate) for rate in re.findall(r"^ +(-?\d+\.\d+)  certified", said, re.M)]
    assert max(rates) == pytest.approx(whole.certificates[0].rate, abs=1e-5)
    assert f"{whole.bound.rate:.6f}  upper bound" in said and said.count("CONVERGED") == len(NAMED)
    assert (tmp_path / "distance.png").stat().st_size > 5000


def test_ticks_are_round_and_inside() -> None:
    assert ticks(-1.0, 1.0) == [-1.0, -0.5, 0.0, 0.5, 1.0] and ticks(2.0, 2.0) == [2.0]
    assert ticks(-10.3, 0.7, whole=True) == [-10.0, -8.0, -6.0, -4.0, -2.0, 0.0]
    assert all(0.03 <= tick <= 0.11 for tick in ticks(0.03, 0.11)) and 3 <= len(ticks(0.03, 0.11)) <= 7


def test_markup_in_names_is_text_and_gaps_break_lines() -> None:
    panel = Panel(title="<b>", x=(0, 1), y=(1e-3, 1), labels=("a & b", "y"), log=True)
    panel.line([(0, 1), (float("nan"), 1), (0.5, 0.1), (1, 0)], "#000", name="<i>")
    drawing = page([panel])
    assert "<b>" not in drawing and "&lt;i&gt;" in drawing and drawing.count("<polyline") == 2
    ElementTree.fromstring(drawing)
