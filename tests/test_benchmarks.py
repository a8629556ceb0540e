"""Every benchmark runs from the command line in its small version, and prints what it should."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from contracting.errors import InputError
from equilibrium.experiments.timing import Times, in_turn, quartiles, ratios_in_turn, spread

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, folder: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "benchmarks" / script), "--small", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_certificate_scaling(tmp_path: Path) -> None:
    rows = [line.split() for line in run("certificate_scaling.py", tmp_path).splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [10, 40]
    assert all(float(row[6]) > 0 for row in rows)  # the checker's margin


_PARTS = {"at once", "picture", "afterwards", "at once, meanwhile"}


@pytest.mark.slow
def test_explorer(tmp_path: Path) -> None:
    printed = run("explorer.py", tmp_path, "--out", str(tmp_path))
    times = json.loads((tmp_path / "results.json").read_text())["times"]
    assert len(times) == 2 and all(set(parts) == _PARTS for parts in times.values())
    assert (tmp_path / "table.md").read_text() in printed and printed.count("| at once | ") == 2


@pytest.mark.slow
def test_crown_without_its_rival(tmp_path: Path) -> None:
    printed = run("crown.py", tmp_path, "--out", str(tmp_path), "--rivals", str(tmp_path / "none"))
    (found,) = json.loads((tmp_path / "results.json").read_text())["networks"]
    assert len(found["ours"]["radius"]) == 4 and min(found["ours"]["radius"]) > 0 and found["constant"] > 0
    assert (tmp_path / "table.md").read_text() in printed and "not installed" in printed


@pytest.mark.slow
def test_tracking(tmp_path: Path) -> None:
    printed = run("tracking.py", tmp_path, "--out", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    slow, *others = results["rows"]
    assert slow["frames"] == 300 and slow["most"] <= 4 and slow["warm"] < slow["cold"] / 3
    for row in results["rows"]:
        assert row["exceeded"] == 0 and 0.1 < row["largest"] <= 1
    assert others[0]["warm"] < others[1]["warm"]
    assert set(results["clocks"]["digits"]) == {"solve from zero", "tracker", "DormandPrince from the last"}
    assert (tmp_path / "table.md").read_text() in printed


@pytest.mark.slow
def test_lipschitz_bounds(tmp_path: Path) -> None:
    pytest.importorskip("clarabel")
    printed = run("lipschitz_bounds.py", tmp_path, "--out", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["comparison"]) == 4
    for row in results["comparison"]:
        assert -1e-3 < row["gap_percent"] < 0.1
        assert abs(row["interior"] / row["program"] - 1) < 1e-5
    assert results["random"]["above"] == 0 and results["random"]["worst_ratio"] <= 1
    assert (tmp_path / "table.md").read_text() in printed


@pytest.mark.slow
def test_lure_certificates(tmp_path: Path) -> None:
    pytest.importorskip("clarabel")
    printed = run("lure_certificates.py", tmp_path, "--out", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parabola"] < 1e-6 and results["bisection"]["size"] == 20
    assert all(abs(difference) < 1e-3 for *_, difference in results["program"])
    kinds = results["kinds"]
    assert len(kinds) == 8 and all(found["beyond"] == 0 for found in kinds.values())
    assert kinds["cooperative"]["gain: closest"] < 0.05 and kinds["scalar"]["rate: closest"] < 0.05
    assert (tmp_path / "table.md").read_text() in printed


@pytest.mark.slow
def test_contractive_draws(tmp_path: Path) -> None:
    printed = run("contractive_draws.py", tmp_path)
    assert "checkers 0 of FiringRate, 0 of Hopfield, 0 of γ" in printed
    assert printed.count("10 of 10 refused") == 2
    images = run("contractive_draws.py", tmp_path, "--images")
    assert "checkers 0 of FiringRate, 0 of Hopfield, 0 of γ" in images and images.count("8 of 8 refused") == 2
    assert all(float(pivot) > 0 for pivot in re.findall(r"of [cγ] ([\d.e+-]+)", printed + images))


@pytest.mark.slow
def test_local_exhaustive(tmp_path: Path) -> None:
    printed = run("local_exhaustive.py", tmp_path, "--count", "10")
    assert "local constants: 0 below the truth" in printed and printed.endswith("wrong 0\n")
    median = float(re.findall(r"median ([\d.]+)", printed)[0])
    assert 1 <= median < 2  # not vacuous


@torch.no_grad()
def test_patterns_of_activation_know_the_largest_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    exhaustive = importlib.import_module("local_exhaustive")
    layer, x, radius = exhaustive.drawn(2)
    truth = exhaustive.largest_drops(layer, x, radius)
    angles, sizes = torch.linspace(0, 2 * torch.pi, 361).double(), torch.linspace(0, 1, 41).double()
    disc = x + radius * (sizes[:, None, None] * torch.stack([angles.cos(), angles.sin()], -1)).reshape(-1, 2)
    moved = layer(disc) - layer(x)
    sampled = (moved[:, None, :] - moved[:, :, None]).amax(0)
    assert bool((sampled <= truth + 1e-8).all()) and bool((sampled >= 0.98 * truth - 1e-8).all())
    assert float(truth.max()) > 0.1


@pytest.mark.slow
def test_contracting_ode(tmp_path: Path) -> None:
    printed = run("contracting_ode.py", tmp_path, "--out", str(tmp_path))
    assert "40 of 40 promises proved" in printed
    (share,) = re.findall(r"gain ([\d.]+) of the promised", printed)
    assert 0.95 < float(share) <= 1  # not vacuous
    (ratio,) = json.loads((tmp_path / "results.json").read_text())["ratios"].values()
    assert 0 < ratio[1] <= ratio[0] <= ratio[2]
    assert (tmp_path / "gain-measured.png").stat().st_size > 0


CLOCK = ("--clock", "cpu")


@pytest.mark.slow
def test_solve_time_without_the_other_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("solve_time.py", tmp_path, "--out", str(tmp_path), "--rivals", str(tmp_path / "none"), *CLOCK)
    results = json.loads((tmp_path / "results.json").read_text())
    assert {(case["rows"], case["dtype"]) for case in results["cases"]} == {
        (rows, dtype) for rows in (1, 20) for dtype in ("float64", "float32")
    }
    for case in results["cases"]:
        people = case["contestants"]
        for name in ("default", "DouglasRachford-1.8", "SemismoothNewton", "reference-oracle"):
            assert people[name]["failure"] is None, (name, people[name])
            assert people[name]["residual"] <= 1.01 * case["target"]
            assert len(people[name]["times"]["walls"]) >= 1
        assert people["bare"]["iterations"] == people["default"]["iterations"]
        for name in ("torchdiffeq-dopri5", "torchdiffeq-bosh3", "torchdiffeq-BDF", "torchdeq-anderson"):
            assert people[name]["failure"] == "not installed" and people[name]["times"] is None
    table = (tmp_path / "table.md").read_text()
    assert table in printed and "failed: not installed" in table
    assert "reference-oracle" in table and "least favourable network" in table
    assert all((tmp_path / f"{name}.png").stat().st_size > 0 for name in ("time-to-residual", "overhead"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    again = tmp_path / "again"
    importlib.import_module("solve_time").main(["--redraw", str(tmp_path / "results.json"), "--out", str(again)])
    assert table in capsys.readouterr().out and (again / "table.md").read_text() == table


@pytest.mark.slow
def test_solve_time_with_a_worker(tmp_path: Path) -> None:
    """This environment has torchdiffeq, and usually no torchdeq: one solves, the other is a failure with its reason."""
    pytest.importorskip("scipy")
    one = ("--rows", "3", "--goals", "float64:1e-6")
    run("solve_time.py", tmp_path, "--out", str(tmp_path), "--rivals", sys.executable, *one, *CLOCK)
    case = json.loads((tmp_path / "results.json").read_text())["cases"][0]
    assert not (tmp_path / "overhead.png").exists()  # one batch size is no curve
    solved = case["contestants"]["torchdiffeq-dopri5"]
    assert solved["failure"] is None and solved["residual"] <= case["target"], solved
    assert min(solved["times"]["cpus"]) > min(case["contestants"]["default"]["times"]["cpus"])
    if importlib.util.find_spec("torchdeq") is None:
        assert "torchdeq" in case["contestants"]["torchdeq-broyden"]["failure"]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., str]]:
    """The one sentence with which a benchmark ends, run in this process and an empty folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    command_line = importlib.import_module("command_line")

    def run(script: str, *options: str) -> str:
        monkeypatch.setattr(sys, "argv", [script])
        main = importlib.import_module(script.removesuffix(".py")).main
        with pytest.raises(SystemExit) as ended:
            command_line.run(lambda: main(["--small", *options]))
        assert ended.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"{script}: error: ")
        return last

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("solve_time.py --rounds 0", "--rounds: 0 is no whole number of at least one"),
        ("solve_time.py --rows 10 -3", "-3"),
        ("solve_time.py --rows 1e3", "--rows: 1e3 is no whole number"),
        ("solve_time.py --networks digit", "there is no digit, only digits"),
        ("solve_time.py --goals float16:1e-3", "--goals: float16:1e-3 is no goal such as"),
        ("solve_time.py --goals float64:2", "--goals: 2 is no number between 0 and 1"),
        ("solve_time.py --time-limit nan", "--time-limit: nan is no positive number"),
        ("solve_time.py --redraw nothing.json", "nothing.json cannot be drawn"),
        ("solve_time.py --checkpoints nowhere", "nowhere holds none of"),
        ("step_sweep.py --rows 0", "--rows: 0 is no whole number"),
        ("step_sweep.py --target -1", "--target: -1 is no number between 0 and 1"),
        ("krylov_limit.py --target 0", "--target: 0 is no number between 0 and 1"),
        ("krylov_limit.py --out=", "--out: it is the empty text"),
        ("scaling.py --out=", "--out: it is the empty text"),
        ("predicted_iterations.py --rows 0", "--rows: 0 is no whole number"),
        ("activations.py --rows 0", "--rows: 0 is no whole number"),
        ("training_step.py --target inf", "--target: inf is no number between 0 and 1"),
        ("training_step.py --data-dir nowhere", "nowhere"),
        ("scaling.py --sizes 0", "--sizes: 0 is no whole number"),
        ("scaling.py --rounds 0", "--rounds: 0 is no whole number"),
        ("certificate_scaling.py --sizes 0", "--sizes: 0 is no whole number"),
        ("lipschitz_bounds.py --networks 0", "--networks: 0 is no whole number"),
        ("lure_certificates.py --count 0", "--count: 0 is no whole number"),
        ("convolution.py --rounds 0", "--rounds: 0 is no whole number"),
        ("convolution.py --checkpoint nothing.pt", "nothing.pt"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    tmp_path: Path, refused: Callable[..., str], options: str, named: str
) -> None:
    assert named in refused(*options.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["solve_time.py", "step_sweep.py", "training_step.py", "scaling.py"])
def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path, refused: Callable[..., str], script: str) -> None:
    (tmp_path / "file").touch()
    assert "output folder 'file' cannot be used" in refused(script, "--out", "file")


def test_timing_in_turn() -> None:
    order: list[str] = []

    def fake(name: str, seconds: float) -> Callable[[int], tuple[float, float]]:
        def measure(repeats: int) -> tuple[float, float]:
            disturbed = 0.0 if order and order[-1][0] == name else 0.1 * seconds  # by whoever came before
            order.append(f"{name}{repeats}")
            return seconds * repeats + disturbed, 2 * seconds * repeats

        return measure

    timers = {"a": fake("a", 1e-3), "b": fake("b", 1.0), "c": fake("c", 30.0)}
    found = in_turn(timers, rounds=5, shortest=0.01, budget=3.0)
    # c is too slow for more, b has used up its budget; a is warm whenever it is measured
    assert order[:5] == ["a1", "b1", "c1", "a1", "b1"] and len(order) == 5 + 3 * 3 + 2 * 2
    rounds = [order[start : start + 3] for start in (5, 8, 11)] + [order[14:16], order[16:]]
    for entries in rounds[:3]:
        assert entries in (["a2", "a10", "b1"], ["b1", "a2", "a10"])
    assert rounds[3:] == [["a2", "a10"]] * 2
    orders = [tuple(entry[0] for entry in entries) for entries in rounds[:3]]
    assert len(set(orders)) == 2  # nobody always comes first
    assert (found["a"].walls, found["a"].cpus, found["a"].repeats) == ((1e-3,) * 5, (2e-3,) * 5, 10)
    assert (found["b"].wall, len(found["b"].walls), found["b"].repeats) == (1.1, 3, 1)
    assert (found["c"].walls, found["c"].cpus) == ((33.0,), (60.0,))
    # b left after the third round, and is compared in the rounds that it was there
    assert found["b"].over(found["a"], "cpu") == pytest.approx((1000,) * 3)


def test_a_cold_start_does_not_say_how_often_a_run_is_repeated() -> None:
    """What was timed 0.0125 and 0.0322 ms for the same work: the first of all was cold, and so never repeated."""
    runs: list[int] = []

    def measure(repeats: int) -> tuple[float, float]:
        runs.append(repeats)
        cold = 0.0 if len(runs) > 1 else 0.5
        return 1e-3 * repeats + cold, 1e-3 * repeats

    times = in_turn({"first": measure}, rounds=3, shortest=0.01, budget=3.0)["first"]
    assert times.repeats == 10 and times.wall == pytest.approx(1e-3) and runs == [1, 1, *[2, 10] * 3]


def test_ratios_are_those_within_a_round() -> None:
    """A disturbance of a whole round is in both times, and so in no ratio."""
    seen: dict[str, int] = {"a": 0, "b": 0}

    def fake(name: str, seconds: float) -> Callable[[int], tuple[float, float]]:
        def measure(repeats: int) -> tuple[float, float]:
            seen[name] += 1
            return repeats * seconds * seen[name], repeats * 2 * seconds * seen[name] ** 2

        return measure

    timers = {"a": fake("a", 0.1), "b": fake("b", 0.3)}
    for clock in ("wall", "cpu"):
        ratios = ratios_in_turn(timers, "a", rounds=4, shortest=0.0, clock=clock)
        assert ratios["a"] == (1.0, 1.0, 1.0) and ratios["b"] == pytest.approx((3.0, 3.0, 3.0))


def test_times_are_told_with_their_quartiles() -> None:
    times = Times(walls=(1e-3, 9e-3, 2e-3, 5e-3, 3e-3), cpus=(4e-3,) * 5, repeats=1)
    assert times.text("wall", 1e-3) == "3 (2–5)" and times.text("cpu", 1e-3) == "4"
    assert times.per(2).text("wall", 1e-3) == "1.5 (1–2.5)" and times.per(2).cpus == (2e-3,) * 5
    assert spread(1.0, 0.99999, 1.00001) == "1" and quartiles([2.0]) == (2.0, 2.0, 2.0)
    # one round that was disturbed moves neither the median nor a quartile
    assert quartiles([1.0, 1.0, 1.0, 1.0, 100.0]) == (1.0, 1.0, 1.0)


@pytest.fixture
def ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Exit code and words of ratios.py on results of two days; the later ones are a change of the earlier ones."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    command_line, script = importlib.import_module("command_line"), importlib.import_module("ratios")
    monkeypatch.setattr(sys, "argv", ["ratios.py"])

    def run(*options: str, scale: float = 1.0, name: str = "solve: a / b", **machine: object) -> tuple[object, str]:
        folders = tmp_path / "before", tmp_path / "after"
        for folder, factor in zip(folders, (1.0, scale), strict=True):
            entries = {name: [factor * 2.0, factor * 1.8, factor * 2.2], "steady": [1.0, 0.9, 1.1]}
            (folder / "one").mkdir(parents=True, exist_ok=True)
            command_line.write_results(folder / "one", ratios=entries, settings={"clock": "cpu"})
            name = "solve: a / b"
        path = folders[1] / "one" / "results.json"
        content = json.loads(path.read_text())
        content["environment"] |= machine
        path.write_text(json.dumps(content))
        code: object = 0
        try:
            command_line.run(lambda: script.main([str(folders[1]), *options]))
        except SystemExit as ended:
            code = ended.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_all_ratios_are_on_one_page(ratios: Callable[..., Any]) -> None:
    code, page = ratios()
    assert code == 0 and "| solve: a / b | 2 (1.8–2.2) |" in page and "| steady | 1 (0.9–1.1) |" in page
    assert "processor" in page and "threads" in page and "clock cpu" in page


@pytest.mark.parametrize(("scale", "code"), [(1.0, 0), (0.5, 0), (1.14, 0), (1.16, 1), (3.0, 1)])
def test_a_ratio_that_became_worse_is_reported(
    ratios: Callable[..., Any], tmp_path: Path, scale: float, code: int
) -> None:
    ended, said = ratios("--before", str(tmp_path / "before"), scale=scale)
    assert ended == code and said.startswith(f"2 ratios compared, {code} worse by more than 15 %")
    assert ("solve: a / b | 2 (1.8–2.2)" in said) == bool(code) and "steady" not in said
    assert ("quartiles overlap" in said) == (scale == 1.16)
    assert ratios("--before", str(tmp_path / "before"), "--worse", "300", scale=scale)[0] == 0


@pytest.mark.parametrize("machine", [{"processor": "another"}, {"threads": 64}, {"torch": "1.0"}])
def test_ratios_of_different_machines_are_not_compared(
    ratios: Callable[..., Any], tmp_path: Path, machine: dict[str, object]
) -> None:
    code, said = ratios("--before", str(tmp_path / "before"), **machine)
    assert code == 2 and next(iter(machine)) in said and said.count("\n") == 1


def test_nothing_to_compare_is_said(ratios: Callable[..., Any], tmp_path: Path) -> None:
    assert ratios("--before", str(tmp_path / "nowhere"))[0] == 2
    broken = tmp_path / "after" / "one" / "results.json"
    broken.write_text("{")
    with pytest.raises(InputError, match="results.json"):
        importlib.import_module("ratios").read(tmp_path / "after")


def test_without_an_accelerator_it_is_said_what_was_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    importlib.import_module("accelerator").main([])
    said = capsys.readouterr().out
    assert "skipped" in said and "contracts" in said and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_runs_on_an_accelerator_runs_on_the_processor(tmp_path: Path) -> None:
    printed = run("accelerator.py", tmp_path, "--device", "cpu", "--out", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["ratios"]) == 5 and not results["skipped"] and "all kept" in printed
    assert results["contracts"] and not any(results["contracts"].values())
    assert all(one["looks"] >= 1 and one["steps"] > 1 for one in results["waits"].values())


@pytest.mark.slow
def test_convolution(tmp_path: Path) -> None:
    run("convolution.py", tmp_path, "--out", str(tmp_path))
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["ratios"]) == 2 and len(results["costs"]) == 3
    default = results["costs"]["default"]
    assert all(cost["products"] >= default["products"] > 0 for cost in results["costs"].values())
    run("convolution.py", tmp_path, "--training", "--out", str(tmp_path / "training"))
    found = json.loads((tmp_path / "training" / "results.json").read_text())["training"]
    assert len(found["products"]) == 4 and len(found["times"]) == 8 and all(found["products"].values())


def test_the_fewest_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as c has parts of different eigenvalues, by Cayley and Hamilton; one where T does nothing."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    fewest = importlib.import_module("krylov_limit").fewest
    T = torch.diag(torch.tensor([0.5, 0.5, -0.3, 0.1, 0.1, 0.1], dtype=torch.float64))
    identity, c = torch.eye(6, dtype=torch.float64), torch.linspace(1, 2, 6, dtype=torch.float64)
    assert fewest(T, c, (c, T - identity), 1e-12) == 3
    alone = c * torch.tensor([1, 1, 0, 0, 0, 0])
    assert fewest(T, alone, (alone, T - identity), 1e-12) == 1
    assert fewest(0 * T, c, (c, -identity), 1e-12) == 1
    assert fewest(T, c, (c, T - identity), 0.2 * float(c.norm())) == 2


@pytest.mark.slow
def test_krylov_limit(tmp_path: Path) -> None:
    printed = run("krylov_limit.py", tmp_path, "--out", str(tmp_path))
    assert (tmp_path / "table.md").read_text() in printed
    (entry,) = json.loads((tmp_path / "results.json").read_text())["limits"]
    # a splitting is such a method, without the knowledge
    assert 1 < max(entry["peaceman_rachford"]) <= entry["default"] <= entry["taken"]
    assert len(entry["firing_rate"]) == 5 and min(entry["firing_rate"]) > 1


@pytest.mark.slow
def test_step_sweep(tmp_path: Path) -> None:
    run("step_sweep.py", tmp_path, "--out", str(tmp_path))
    (sweep,) = json.loads((tmp_path / "results.json").read_text())["sweeps"]
    assert len(sweep["counts"]) == 12
    assert sweep["best"] == min(sweep["counts"]) and sweep["ratio"] == sweep["iterations"] / sweep["best"]
    # the ends of the sweep are no rivals: a step four times too small or too large is seen to cost iterations
    assert min(sweep["counts"][0], sweep["counts"][-1]) > 1.5 * sweep["best"]


@pytest.mark.slow
def test_looseness(tmp_path: Path) -> None:
    printed = run("looseness.py", tmp_path, "--systems", "1", "--rows", "10", "--out", str(tmp_path))
    rows = json.loads((tmp_path / "results.json").read_text())["looseness"]
    assert len(rows) == 22 and (tmp_path / "table.md").read_text() in printed
    for row in rows:
        before, after = torch.tensor(row["before"]), torch.tensor(row["after"])
        assert bool((after < before).all()), row["kind"]
        # convergence for constant input may be faster than contraction; nothing else may be better than the truth
        assert bool((after < 1e-9 if row["measure"] == "its rate − rate" else after > -1e-6).all()), row["kind"]


@pytest.mark.slow
def test_predicted_iterations(tmp_path: Path) -> None:
    run("predicted_iterations.py", tmp_path, "--out", str(tmp_path))
    counts = {entry["solver"]: entry for entry in json.loads((tmp_path / "results.json").read_text())["counts"]}
    for name in ("PeacemanRachford", "ForwardBackward", "DouglasRachford"):
        entry = counts[name]
        assert 0 < entry["factor"] < 1 and entry["used"] <= 1.2 * entry["predicted"]
    assert counts["DormandPrince"]["predicted"] is None and counts["DormandPrince"]["used"] > 0


@pytest.mark.slow
def test_starts_and_gradients(tmp_path: Path) -> None:
    printed = run("starts_and_gradients.py", tmp_path, "--out", str(tmp_path))
    found = json.loads((tmp_path / "results.json").read_text())
    errors = {entry["way"]: entry["error"] for entry in found["gradients"]}
    assert errors["Implicit()"] < 1e-5 and errors["Unrolled()"] < 1e-3 < errors["JacobianFree()"]
    distances = {entry["start"]: entry["distance"] for entry in found["starts"]}
    assert distances["zero"] == 1 and distances["affine"] < 0.5 * distances["σ(q)"]
    steps = {entry["start"]: entry["steps"] for entry in found["starts"]}
    assert steps["the equilibrium"] == 0 < steps["affine"]
    assert (tmp_path / "table.md").read_text() in printed


@pytest.mark.slow
def test_activations(tmp_path: Path) -> None:
    printed = run("activations.py", tmp_path, "--out", str(tmp_path))
    entries = json.loads((tmp_path / "results.json").read_text())["entries"]
    assert len(entries) == 4 * 2 and (tmp_path / "table.md").read_text() in printed
    for entry in entries:
        assert entry["residual"] <= 3e-5 and entry["iterations"] > 1
        for median, low, high in (entry["solve"], entry["step"]):
            assert 0 < low <= median <= high


@pytest.mark.slow
def test_training_step(tmp_path: Path) -> None:
    run("training_step.py", tmp_path, "--out", str(tmp_path), *CLOCK)
    (step,) = json.loads((tmp_path / "results.json").read_text())["steps"]
    for name in ("residual", "adjoint_residual", "reference_residual", "reference_adjoint_residual"):
        assert step[name] <= 1.01e-4
    assert step["tight_worst_difference"] < 1e-9 < step["difference"] < 1e-3
    assert 0 < step["ratio"][1] <= step["ratio"][0] <= step["ratio"][2]


@pytest.mark.slow
def test_scaling(tmp_path: Path) -> None:
    run("scaling.py", tmp_path, "--out", str(tmp_path), *CLOCK)
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(point["residual"] <= 1e-6 for point in results["sizes"] + results["rows"])
    loose, tight, unrolled_loose, unrolled_tight = results["memory"]
    assert tight["iterations"] > 3 * loose["iterations"] and tight["residual"] <= 1e-12
    # a state of all rows is the unit: three of them are not the dozens of iterations more
    assert tight["states"] < loose["states"] + 3
    assert unrolled_tight["states"] > unrolled_loose["states"] + 10
