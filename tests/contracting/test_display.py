"""Records show themselves in a line, a text and a table, with no tensor written out."""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any, get_type_hints

import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from torch import Tensor

import contracting
import contracting.certificates
import equilibrium
import equilibrium.lipschitz
from contracting import (
    Activation,
    Certificate,
    FiringRate,
    Method,
    MissingExtraError,
    Status,
    Stop,
    Trace,
    certify,
    default_solvers,
    fixed_input_convergence,
    report,
    sampled_rate,
)
from contracting.certificates import Finder, sweep_skewness, system_of, upper_bound
from contracting.display import Displayed, Row, Tabular, brief
from contracting.metrics import Metric, WeightedL2
from equilibrium import LBEN, lipschitz_report, pairwise_lipschitz
from equilibrium.experiments.compare_solvers.study import compare
from equilibrium.training.data import digits, subset
from equilibrium.training.loop import train

# Settings, whose repr is the Python that makes them again.
SETTINGS = (Activation, Method, Finder, Stop)


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    """One of each kind that a user holds, from a layer of a size at which tensors would be long."""
    torch.manual_seed(0)
    dataset = subset(digits(dtype=torch.float64), train=40, test=30)
    layer = LBEN(64, 12, 10, lipschitz=1.0, contraction_rate=0.2, dtype=torch.float64)
    small = LBEN(4, 5, 3, lipschitz=1.0, dtype=torch.float64)
    record = train(layer, dataset, epochs=2, batch_size=40)
    with torch.no_grad():
        x = dataset.test_inputs
        flow, trace = layer.flow(FiringRate, x[:1]), Trace()
        solution = layer.solve(x, trace=trace)
        few = {name: default_solvers()[name] for name in ("PeacemanRachford", "DormandPrince", "FISTA")}
        rates, weights = report(flow), layer.weights()
        metric, turning = weights.metric, torch.tensor([[0.1, 0.5], [-0.5, 0.2]]).double()
        assert isinstance(metric, WeightedL2)
        return {
            "solution": solution,
            "trace": trace,
            "certificate": rates.best,
            "report": rates,
            "bound": rates.bound,
            "convergence": fixed_input_convergence(flow),
            "sampled": sampled_rate(flow, torch.randn(50, 12).double(), metric),
            "sweep": sweep_skewness(turning, metric.identity(2), torch.tensor([0.5, 1.0])),
            "lipschitz": lipschitz_report(small, starts=1),
            "pairs": pairwise_lipschitz(small),
            "comparison": compare(layer, x, few, (1e-2, 1e-3, 1e-4, 1e-6, 1e-8), repeats=1),
            "weights": weights,
            "dataset": dataset,
            "flow": flow,
            "problem": flow.problem,
            "training": record,
            "last solves": layer.last_solves,
        }


def test_a_notebook_keeps_less_than_two_thousand_characters_of_each(objects: dict[str, Any]) -> None:
    formatter = DisplayFormatter()
    for name, value in objects.items():
        shown, _ = formatter.format(value)
        assert set(shown) == {"text/plain", "text/html"}, name
        for form in (*shown.values(), str(value)):
            assert 10 < len(re.sub(r"<[^>]+>", " ", form)) < 2000 and "tensor(" not in form, (name, form)
        assert len(shown["text/plain"].splitlines()) < 30 and len(repr(value)) < 400, name


def test_what_is_shown_is_what_was_found(objects: dict[str, Any]) -> None:
    best, rates = objects["certificate"], objects["report"]
    assert f"{best.rate:.6g}" in best._repr_html_() and "per unit of the flow" in best._repr_html_()
    assert best.method in repr(best) and f"rate={best.rate:.6g}" in repr(best)
    assert all(f"{c.rate:.4g}" in rates._repr_html_() for c in rates.all)
    solution = objects["solution"]
    assert "30 CONVERGED" in solution._repr_html_() and "30 CONVERGED" in str(solution)
    assert "float64 (30, 12)" in repr(solution)


def test_rows_can_be_read_by_pandas(objects: dict[str, Any]) -> None:
    tables = {name: value for name, value in objects.items() if isinstance(value, Tabular)}
    assert {"solution", "trace", "report", "sweep", "pairs", "comparison", "training"} <= set(tables)
    for name, value in tables.items():
        records = value.to_records()
        assert records and all(list(record) == list(records[0]) for record in records), name
        assert all(isinstance(x, str | int | float | bool | None) for record in records for x in record.values()), name
        assert len(value.to_dataframe()) == len(records)
    solution = objects["solution"]
    rows = solution.to_dataframe()
    assert rows["steps"].tolist() == solution.steps.tolist() and set(rows["status"]) == {Status.CONVERGED.name}
    assert len(objects["pairs"].to_records()) == 3 and len(objects["comparison"].to_records()) == 10
    fastest = objects["comparison"].to_records()[0]
    assert fastest["tolerance"] == 1e-8 and fastest["converged"]


def test_rows_without_pandas_name_the_extra(objects: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="notebook"):
        objects["solution"].to_dataframe()


def test_long_tables_are_cut_and_markup_is_text() -> None:
    @dataclasses.dataclass(frozen=True, repr=False)
    class Many(Tabular):
        count: int
        note: str

        def _each(self) -> Any:
            return ({"number": i, "note": "x" * 100} for i in range(self.count))

    shown = Many(10**9, "<script>")._repr_html_()  # nobody counts them
    assert shown.count("<td>9</td>") == 1 and "<td>10</td>" not in shown and "to_dataframe" in shown
    assert "&lt;script&gt;" in shown and "<script>" not in shown
    assert "to_dataframe" not in Many(10, "")._repr_html_() and len(re.sub("<[^>]+>", "", shown)) < 2000
    assert Many(0, "")._repr_html_().count("<table>") == 2


def test_values_take_a_line() -> None:
    assert brief(None) == "–" and brief(1 / 3) == "0.333333" and brief(True) == "True"
    assert brief(torch.tensor(0.25)) == "0.25" and brief(torch.tensor([1.0, 2.0])) == "(1, 2)"
    assert brief(torch.zeros(5)) == "float32 (5,)" and brief(torch.zeros(2, device="meta")) == "float32 (2,)"
    assert brief(["a"]) == "(a)" and brief([]) == "none" and brief(list(range(9))) == "9 × int"
    assert brief("two\nlines") == "two lines" and len(brief("long" * 100)) == 72
    assert brief(Status.STALLED) == "STALLED" and "0x" not in brief(lambda: None)
    assert torch.func.vmap(lambda row: row * len(brief(row)))(torch.ones(3, 2)).tolist()[0] == [12.0, 12.0]


def test_a_record_of_ones_own_shows_itself_with_units() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
    class Mine(Displayed):
        _units = {"length": "m"}
        length: float
        name: str = "a"

    assert repr(Mine(length=2.0)) == "Mine(length=2, name='a')"
    assert str(Mine(length=2.0)).splitlines()[1].endswith("2  m")
    assert Mine(length=2.0).shown()[0] == Row("length", 2.0, "m")

    @dataclasses.dataclass(frozen=True)
    class Theirs(Metric):  # whose generated repr would write its tensor out
        values: Tensor

    Theirs.__qualname__ = "Theirs"
    Theirs.__abstractmethods__ = frozenset()
    assert "tensor" in repr(Theirs(torch.zeros(50)))  # type: ignore[abstract]
    assert brief(Theirs(torch.zeros(50))) == "Theirs(values=float32 (50,))"  # type: ignore[abstract]


def test_no_record_of_tensors_is_printed_by_its_generated_repr() -> None:
    """The kind: a public dataclass with a field for a tensor, a norm or a certificate, unless it is a setting."""
    told, kinds = set(), (Tensor, Metric, Certificate)
    for package in (contracting, contracting.certificates, equilibrium, equilibrium.lipschitz):
        for name in package.__all__:
            kind = getattr(package, name)
            if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)) or hasattr(kind, "bind"):
                continue
            hints = get_type_hints(kind, localns={"BoundFlow": Any})
            held = [hints[field.name] for field in dataclasses.fields(kind) if field.repr]
            parts = [part for hint in held for part in (hint, *getattr(hint, "__args__", ()))]
            if any(isinstance(part, type) and issubclass(part, kinds) for part in parts):
                if not issubclass(kind, SETTINGS):
                    told.add(name)
                    assert issubclass(kind, Displayed) and kind.__repr__ is Displayed.__repr__, f"{kind}: repr=False"
    assert len(told) > 25 and {"Solution", "Certificate", "Weights", "Dense", "FiringRateSystem"} <= told


def test_certificates_are_still_sentences(objects: dict[str, Any]) -> None:
    flow = objects["flow"]
    assert str(certify(flow)).startswith("firing rate: contracts at rate")
    assert str(upper_bound(system_of(flow))).startswith("no norm contracts faster")
