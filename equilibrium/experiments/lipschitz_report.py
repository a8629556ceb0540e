"""``lipschitz-report``: certified and attained Lipschitz constants of networks, with the data that proves both."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from contracting import CertificateError, InputError, PreconditionError, checks
from equilibrium import EquilibriumLayer, LipschitzCertificate, LipschitzReport, load_reference, train
from equilibrium.experiments.networks import digits_for, new_layer
from equilibrium.experiments.options import Out, Small, Threads
from equilibrium.experiments.publishing import on_threads, publish, working_in
from equilibrium.experiments.tables import Column, markdown
from equilibrium.lipschitz import AttainedRatio, Norm, PairAscent, PatternSearch, RegionWalk, verify_report
from equilibrium.lipschitz import lipschitz_report as both_bounds

_GAMMA = re.compile(r"_lip([0-9.]+)_")  # the reference code writes γ into the file name only
_REPORTED = "reported.json"
_COLUMNS = (
    Column("network", lambda entry: entry["name"]),
    Column("γ", lambda entry: entry["gamma"], ".4g"),
    Column("certified", lambda entry: entry["certified"], ".5g"),
    Column("attained", lambda entry: entry["attained"], ".5g"),
    Column("attained/certified", lambda entry: entry["ratio"]),
    Column("attained, as reported", lambda entry: entry["reported"], ".4g"),
)


def lipschitz_report(
    checkpoint: Annotated[
        Path | None, "Reference checkpoint, or a folder of them (default: a network is trained on digits)."
    ] = None,
    lipschitz: Annotated[
        float | None, "γ of training (default 1), or of a checkpoint that does not say it in its name."
    ] = None,
    epsilon: Annotated[float, "Strong monotonicity of the parameterisation."] = 1.0,
    thorough: Annotated[bool, "Also search by walks and by ascent over pairs."] = False,
    verify: Annotated[
        Path | None, "Prove the bounds and repeat the pairs of this results.json (default: find new ones)."
    ] = None,
    seed: Annotated[int, "Of the searches, and of the training."] = 0,
    threads: Threads = 1,
    out: Out = Path("out/lipschitz-report"),
    small: Small = False,
) -> None:
    """Bound the Lipschitz constant of networks from above, with proof, and from below, with a pair of inputs."""
    checks.seed("--seed", seed)
    if checkpoint is not None:
        subjects = _stored(checkpoint, lipschitz, epsilon)
    elif verify is not None:
        raise InputError("--verify needs the networks: name them by --checkpoint")
    else:
        subjects = _trained(1.0 if lipschitz is None else lipschitz, seed, small)
    if verify is not None:
        with on_threads(threads):
            _verify(verify, subjects)
        return
    searches: list[PatternSearch | RegionWalk | PairAscent]
    searches = [PatternSearch(restarts=4, rounds=1)] if small else [PatternSearch()]
    if thorough:
        searches += [RegionWalk(steps=3), PairAscent(steps=3)] if small else [RegionWalk(), PairAscent()]
    entries: list[dict[str, Any]] = []
    with working_in(out, threads=threads) as folder:
        for subject in subjects:
            try:
                found = both_bounds(subject.layer, searches=searches, seed=seed)
            except PreconditionError as error:
                print(f"left out {subject.name}: {error}")
                continue
            print(f"{subject.name}: {found}", flush=True)
            entries.append(_entry(subject, found))
        if not entries:
            raise InputError("nothing could be certified")
        print()
        publish(folder, markdown(_COLUMNS, entries), {"networks": entries}, table="table.md")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Subject:
    name: str
    layer: EquilibriumLayer
    gamma: float | None
    reported: float | None


def _trained(gamma: float, seed: int, small: bool) -> Iterator[_Subject]:
    """One network, trained when it is asked for."""
    dataset = digits_for(seed, small=small)
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


def _entry(subject: _Subject, found: LipschitzReport) -> dict[str, Any]:
    """Everything that proves both bounds, in the types of JSON; a float64 survives the way there and back."""
    proof, witness = found.certificate, found.witness
    return {
        "name": subject.name,
        "gamma": subject.gamma,
        "certified": found.certified,
        "attained": found.attained,
        "ratio": found.ratio,
        "reported": subject.reported,
        "certificate": {
            name: getattr(proof, name) for name in ("method", "slopes", "multiplier", "state_gains", "units")
        },
        "pair": {"search": witness.method, "first": witness.first, "second": witness.second},
    }


def _claim(entry: Mapping[str, Any]) -> LipschitzReport:
    """The report that ``_entry`` wrote down."""
    proof, pair = entry["certificate"], entry["pair"]
    (low, high), (p, q) = proof["slopes"], proof["units"]
    return LipschitzReport(
        certificate=LipschitzCertificate(
            bound=entry["certified"],
            norm=Norm.L2,
            method=proof["method"],
            slopes=(low, high),
            margin=0.0,
            multiplier=_tensor(proof["multiplier"]),
            state_gains=_tensor(proof["state_gains"]),
            units=(p, q),
        ),
        witness=AttainedRatio(
            ratio=entry["attained"],
            first=torch.tensor(pair["first"], dtype=torch.float64),
            second=torch.tensor(pair["second"], dtype=torch.float64),
            method=pair["search"],
        ),
    )


def _tensor(values: list[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float64)


def _verify(path: Path, subjects: Iterator[_Subject]) -> None:
    """Repeat what results.json claims: the proof of each bound, and the two solves of each pair."""
    with _refusing(path):
        claims = {entry["name"]: _claim(entry) for entry in _read_json(path)["networks"]}
    found = [subject for subject in subjects if subject.name in claims]
    for subject in found:
        claim = claims[subject.name]
        try:
            verify_report(subject.layer, claim)
        except CertificateError as error:
            raise InputError(f"{subject.name}: {error}") from None
        print(f"{subject.name}: verified {claim.attained:.6g} ≤ Lipschitz constant ≤ {claim.certified:.6g}")
    if not found:
        raise InputError(f"{path} is about {', '.join(claims)}: none of them is among the checkpoints")


def _read_json(path: Path) -> Any:
    with _refusing(path):
        return json.loads(path.read_text(encoding="utf-8"))


@contextlib.contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{str(path)!r} is damaged or not what this command reads ({type(error).__name__}: {error})"
        ) from error
