"""``lipschitz-report``: certified and attained Lipschitz constants of networks, with the data that proves both."""

# no postponed annotations here: typer reads the annotations of the commands, which exist only once typer is imported

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch

from contracting import checks
from contracting.certificates.records import CertificateError
from contracting.errors import InputError, PreconditionError
from equilibrium.checkpoints import load_reference
from equilibrium.experiments.common import SMALL_HELP, THREADS_HELP, clean_output, new_layer, report, running_with
from equilibrium.files import environment, write_json, write_text
from equilibrium.layers import EquilibriumLayer
from equilibrium.lipschitz import (
    AttainedRatio,
    LipschitzCertificate,
    LipschitzReport,
    Norm,
    PairAscent,
    PatternSearch,
    RegionWalk,
    lipschitz_report,
    verify_report,
)
from equilibrium.training.classifier import train
from equilibrium.training.data import digits, subset

_GAMMA = re.compile(r"_lip([0-9.]+)_")  # the reference code writes γ into the file name only
_REPORTED = "reported.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class _Subject:
    name: str
    layer: EquilibriumLayer
    gamma: float | None
    reported: float | None


def command(typer: ModuleType) -> Callable[..., None]:
    """The command as a function whose parameters are the options."""
    option = typer.Option

    def lipschitz_bounds(
        checkpoint: Annotated[
            Path | None, option(help="Reference checkpoint, or a folder of them; else a network is trained on digits.")
        ] = None,
        lipschitz: Annotated[
            float | None, option(help="γ of training (default 1), or of a checkpoint that does not say it in its name.")
        ] = None,
        epsilon: Annotated[float, option(help="Strong monotonicity of the parameterisation.")] = 1.0,
        thorough: Annotated[bool, option("--thorough", help="Also search by walks and by ascent over pairs.")] = False,
        verify: Annotated[
            Path | None, option(help="Prove the bounds and repeat the pairs of this results.json instead.")
        ] = None,
        seed: Annotated[int, option(help="Of the searches, and of the training.")] = 0,
        threads: Annotated[int, option(help=THREADS_HELP)] = 1,
        out: Annotated[Path, option(help="Folder for results.json and table.md.")] = Path("out/lipschitz-report"),
        small: Annotated[bool, option("--small", help=SMALL_HELP)] = False,
    ) -> None:
        """Bound the Lipschitz constant of networks from above, with proof, and from below, with a pair of inputs."""
        checks.seed("--seed", seed)
        with running_with(checks.whole_number("--threads", threads)):
            if checkpoint is None and verify is not None:
                raise InputError("--verify needs the networks: name them by --checkpoint")
            if checkpoint is None:
                subjects = _trained(1.0 if lipschitz is None else lipschitz, seed, small)
            else:
                subjects = _stored(checkpoint, lipschitz, epsilon)
            if verify is not None:
                _verify(verify, subjects)
                return
            with clean_output(out) as folder:
                _report(subjects, folder, seed, thorough, small)

    return lipschitz_bounds


def _trained(gamma: float, seed: int, small: bool) -> Iterator[_Subject]:
    """One network, trained when it is asked for."""
    dataset = digits(seed=seed)
    dataset = subset(dataset, train=256, test=100) if small else dataset
    layer = new_layer(dataset, 16 if small else 64, seed, lipschitz=gamma)
    train(layer, dataset, epochs=2 if small else 15, seed=seed, progress=True)
    yield _Subject(name="digits", layer=layer, gamma=gamma, reported=None)


def _stored(path: Path, gamma: float | None, epsilon: float) -> Iterator[_Subject]:
    """The networks of a file, or those of a folder that can be read; what cannot is named."""
    files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"no checkpoint (*.pt) in {path}")
    beside = (path if path.is_dir() else path.parent) / _REPORTED
    reported = _read_json(beside) if beside.is_file() else {}
    for file in files:
        named = _GAMMA.search(file.name)
        bound = float(named.group(1)) if named and (gamma is None or path.is_dir()) else gamma
        try:
            layer = load_reference(file, lipschitz=bound, epsilon=epsilon)
        except InputError as error:
            if len(files) == 1:
                raise
            print(f"left out {file.stem}: {error}")
            continue
        entry = reported.get(file.stem, {})
        yield _Subject(name=file.stem, layer=layer, gamma=bound, reported=entry.get("lipschitz_lower_bound"))


def _report(subjects: Iterator[_Subject], folder: Path, seed: int, thorough: bool, small: bool) -> None:
    searches: list[PatternSearch | RegionWalk | PairAscent]
    searches = [PatternSearch(restarts=4, rounds=1)] if small else [PatternSearch()]
    if thorough:
        searches += [RegionWalk(steps=3), PairAscent(steps=3)] if small else [RegionWalk(), PairAscent()]
    entries: list[dict[str, Any]] = []
    for subject in subjects:
        try:
            found = lipschitz_report(subject.layer, searches=searches, seed=seed)
        except PreconditionError as error:
            print(f"left out {subject.name}: {error}")
            continue
        print(f"{subject.name}: {found}", flush=True)
        entries.append(_entry(subject, found))
    if not entries:
        raise InputError("nothing could be certified")
    text = _table(entries)
    print()
    print(text, end="")
    written = [
        write_json(folder / "results.json", {"environment": environment(), "networks": entries}),
        write_text(folder / "table.md", text),
    ]
    report(written, [])


def _entry(subject: _Subject, found: LipschitzReport) -> dict[str, Any]:
    """Everything that proves both bounds, in the types of JSON; a float64 survives the way there and back."""
    return {
        "name": subject.name,
        "gamma": subject.gamma,
        "certified": found.certified,
        "attained": found.attained,
        "ratio": found.ratio,
        "reported": subject.reported,
        "certificate": {
            "method": found.certificate.method,
            "slopes": found.certificate.slopes,
            "multiplier": found.certificate.multiplier,
            "state_gains": found.certificate.state_gains,
            "units": found.certificate.units,
        },
        "pair": {"search": found.witness.method, "first": found.witness.first, "second": found.witness.second},
    }


def _table(entries: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| network | γ | certified | attained | attained/certified | attained, as reported |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        gamma, reported = (("–" if entry[key] is None else f"{entry[key]:.4g}") for key in ("gamma", "reported"))
        lines.append(
            f"| {entry['name']} | {gamma} | {entry['certified']:.5g} | {entry['attained']:.5g} | {entry['ratio']:.4f} "
            f"| {reported} |"
        )
    return "\n".join(lines) + "\n"


def _verify(path: Path, subjects: Iterator[_Subject]) -> None:
    """Repeat what results.json claims: the proof of each bound, and the two solves of each pair."""
    if not path.is_file():
        raise InputError(f"no results file at {path}")
    with _refusing(path):
        claims = {entry["name"]: _claim(entry) for entry in _read_json(path)["networks"]}
    seen = 0
    for subject in subjects:
        if subject.name not in claims:
            continue
        seen += 1
        claim = claims[subject.name]
        try:
            verify_report(subject.layer, claim)
        except CertificateError as error:
            raise InputError(f"{subject.name}: {error}") from None
        print(f"{subject.name}: verified {claim.attained:.6g} ≤ Lipschitz constant ≤ {claim.certified:.6g}")
    if seen == 0:
        raise InputError(f"{path} is about {', '.join(claims)}: none of them is among the checkpoints")


def _read_json(path: Path) -> Any:
    with _refusing(path):
        return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{str(path)!r} is damaged or not what this command reads ({type(error).__name__}: {error})"
        ) from error


def _claim(entry: Mapping[str, Any]) -> LipschitzReport:
    proof, pair = entry["certificate"], entry["pair"]
    multiplier, state_gains = (
        None if proof[key] is None else torch.tensor(proof[key], dtype=torch.float64)
        for key in ("multiplier", "state_gains")
    )
    (low, high), (p, q) = proof["slopes"], proof["units"]
    return LipschitzReport(
        certificate=LipschitzCertificate(
            bound=entry["certified"],
            norm=Norm.L2,
            method=proof["method"],
            slopes=(low, high),
            margin=0.0,
            multiplier=multiplier,
            state_gains=state_gains,
            units=(p, q),
        ),
        witness=AttainedRatio(
            ratio=entry["attained"],
            first=torch.tensor(pair["first"], dtype=torch.float64),
            second=torch.tensor(pair["second"], dtype=torch.float64),
            method=pair["search"],
        ),
    )
