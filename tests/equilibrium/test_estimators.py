"""Estimators keep scikit-learn's conventions, and what they certify is true."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from contracting import FiringRate, InputError, certify
from equilibrium import CrossEntropy
from equilibrium.estimators import EquilibriumClassifier, EquilibriumRegressor

QUICK = {"hidden_features": 6, "batch_size": 32, "learning_rate": 0.05, "random_state": 0}


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(inputs), np.array(["setosa", "versicolor", "virginica"])[labels]


@pytest.fixture(scope="module")
def classifier(iris) -> EquilibriumClassifier:
    return EquilibriumClassifier(
        lipschitz=2.0, contraction_rate=0.2, loss=CrossEntropy(temperature=0.3), epochs=20, **QUICK
    ).fit(*iris)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [
    EquilibriumClassifier(epochs=5, **QUICK), EquilibriumRegressor(epochs=12, **QUICK),
], ids=lambda estimator: type(estimator).__name__)  # fmt: skip
def test_scikit_learn_finds_nothing_to_object_to(estimator) -> None:
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] not in ("passed", "skipped")}
    assert len(results) > 45 and not failed
    assert {r["check_name"] for r in results if r["status"] == "skipped"} <= {"check_array_api_input"}


def test_labels_of_any_kind_are_learnt_and_probabilities_add_up(classifier, iris) -> None:
    inputs, labels = iris
    assert classifier.score(inputs, labels) > 0.9 and classifier.classes_.tolist() == sorted(set(labels))
    probabilities = classifier.predict_proba(inputs)
    assert np.allclose(probabilities.sum(1), 1)
    assert (classifier.classes_[probabilities.argmax(1)] == classifier.predict(inputs)).all()
    assert classifier.record_.epochs[-1].loss < classifier.record_.epochs[0].loss


def test_the_certified_constant_and_rate_are_those_of_what_was_trained(classifier, iris) -> None:
    bound = classifier.certified_lipschitz()
    assert 0 < bound <= 2.0 * (1 + 1e-6)
    generator = np.random.default_rng(0)
    first, second = iris[0], iris[0] + 0.5 * generator.normal(size=iris[0].shape)
    moved = np.linalg.norm(classifier.decision_function(first) - classifier.decision_function(second), axis=1)
    ratios = moved / np.linalg.norm(first - second, axis=1)
    assert ratios.max() <= bound and ratios.max() > 0.2 * bound
    assert certify(classifier.layer_.flow(FiringRate)).rate >= 0.2


def test_nothing_inside_a_certified_radius_changes_the_class(classifier, iris) -> None:
    inputs, labels = iris
    predicted, radii = classifier.predict(inputs), classifier.certified_radii(inputs)
    assert radii.shape == (150,) and (radii >= 0).all() and np.median(radii) > 0.1
    true = classifier.certified_radii(inputs, labels)
    assert (true[predicted != labels] == 0).all() and (true[predicted == labels] == radii[predicted == labels]).all()
    generator = np.random.default_rng(1)
    for _ in range(5):  # anywhere, and towards the middle, where the classes meet
        away = generator.normal(size=inputs.shape)
        moved = inputs + 0.999 * radii[:, None] * away / np.linalg.norm(away, axis=1, keepdims=True)
        assert (classifier.predict(moved) == predicted).all()
    towards = inputs.mean(0) - inputs
    size = np.linalg.norm(towards, axis=1, keepdims=True)
    assert (classifier.predict(inputs + 0.999 * np.minimum(radii[:, None], size) * towards / size) == predicted).all()
    far = inputs + 30 * np.maximum(radii, 0.1)[:, None] * towards / size  # beyond it some classes change
    assert (classifier.predict(far) != predicted).any()
    with pytest.raises(ValueError, match="labels"):
        classifier.certified_radii(inputs[:2], ["setosa", "rose"])


def test_numbers_are_fitted_with_a_certified_slope() -> None:
    x = np.linspace(-2, 2, 80)[:, None]
    free, bound = (
        EquilibriumRegressor(lipschitz=gamma, epochs=60, **QUICK).fit(x, np.sign(x[:, 0])) for gamma in (None, 1.0)
    )
    assert free.score(x, np.sign(x[:, 0])) > bound.score(x, np.sign(x[:, 0])) > 0.5
    slopes = np.abs(np.diff(bound.predict(x)) / np.diff(x[:, 0]))
    assert slopes.max() <= bound.certified_lipschitz() <= 1.0 + 1e-6
    assert np.abs(np.diff(free.predict(x)) / np.diff(x[:, 0])).max() > 1.5
    both = EquilibriumRegressor(epochs=2, **QUICK).fit(x, np.hstack([x, -x]))
    assert both.predict(x).shape == (80, 2) and free.predict(x).shape == (80,)


def test_pipelines_searches_copies_and_files(iris) -> None:
    search = GridSearchCV(
        make_pipeline(StandardScaler(), EquilibriumClassifier(epochs=2, **QUICK)),
        {"equilibriumclassifier__lipschitz": [None, 5.0]}, cv=2, error_score="raise",
    ).fit(*iris)  # fmt: skip
    best = search.best_estimator_
    again = pickle.loads(pickle.dumps(best))
    assert (again.predict(iris[0]) == best.predict(iris[0])).all()
    with pytest.raises(NotFittedError):
        clone(best[-1]).predict(iris[0])


def test_training_goes_on_and_tells(iris, tmp_path: Path) -> None:
    told: list[object] = []
    options = {**QUICK, "epochs": 3, "checkpoint": tmp_path / "training.pt"}
    first = EquilibriumClassifier(callback=told.append, **options).fit(*iris)
    assert len(told) == 3 * 5
    second = EquilibriumClassifier(**options).fit(*iris)  # everything was done already
    assert second.record_ == first.record_
    assert all(torch.equal(a, b) for a, b in zip(first.layer_.parameters(), second.layer_.parameters(), strict=True))


@pytest.mark.parametrize(("options", "named"), [
    ({"hidden_features": 0}, "hidden_features"), ({"lipschitz": -1.0}, "lipschitz"), ({"activation": "gelu"}, "gelu"),
    ({"epochs": 0}, "epochs"), ({"loss": 3}, "loss"),
])  # fmt: skip
def test_wrong_settings_are_named_when_fitting(options: dict[str, object], named: str, iris) -> None:
    with pytest.raises(InputError, match=named):
        EquilibriumClassifier(**options).fit(*iris)


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import equilibrium; import equilibrium.estimators"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ran.returncode != 0 and "MissingExtraError" in ran.stderr and "[data]" in ran.stderr
