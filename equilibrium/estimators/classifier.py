"""A classifier whose decision cannot change within a certified radius."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from contracting import checks
from equilibrium.estimators.base import EquilibriumEstimator, sklearn_base, validation
from equilibrium.lipschitz import pairwise_lipschitz
from equilibrium.local.radius import certified_radius
from equilibrium.training.losses import CrossEntropy, as_loss


class EquilibriumClassifier(sklearn_base.ClassifierMixin, EquilibriumEstimator):  # type: ignore[misc, name-defined]
    """An equilibrium network as a classifier, with certified radii.

    Settings and attributes as of ``EquilibriumEstimator``; ``loss=CrossEntropy(temperature=γ/5)`` suits a small γ.

    Attributes, beside those:
        classes_: the labels, in the order of the outputs.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Train on inputs (count, in) and labels (count,) of any kind.

        Raises:
            ValueError: on data that are no numbers, not finite or do not fit, as scikit-learn says it.
            InputError: on a setting out of range.
            TrainingError: if the training diverges.
        """
        rows, labels = validation.validate_data(self, X, y, dtype=np.float64)
        checks.extra("sklearn.utils.multiclass", "data", "fit()").check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        return self._fitted_to(rows, torch.from_numpy(numbers.astype(np.int64)), len(self.classes_))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """The outputs, (count, classes); of two classes their difference, (count,), positive for the second."""
        outputs = self._outputs(X)
        return outputs[:, 1] - outputs[:, 0] if outputs.shape[1] == 2 else outputs

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """The softmax of outputs/τ, τ the temperature of the loss, (count, classes)."""
        loss = CrossEntropy() if self.loss is None else as_loss(self.loss)
        temperature = loss.temperature if isinstance(loss, CrossEntropy) else 1.0
        probabilities: NDArray[np.float64] = torch.softmax(torch.from_numpy(self._outputs(X)) / temperature, -1).numpy()
        return probabilities

    def predict(self, X: ArrayLike) -> NDArray[Any]:  # noqa: N803
        """The labels with the largest outputs, (count,)."""
        largest = self._outputs(X).argmax(-1)
        predicted: NDArray[Any] = self.classes_[largest]
        return predicted

    def certified_radii(self, X: ArrayLike, y: ArrayLike | None = None) -> NDArray[np.float64]:  # noqa: N803
        """The ℓ2 radius around each input within which the predicted class cannot change, (count,).

        Args:
            X: inputs, (count, in).
            y: labels, with which the radius of a misclassified input is 0; None takes the predicted ones.

        Raises:
            PreconditionError: if nothing can be certified.
            ValueError: on a label that was not there in ``fit``.
        """
        labels = self.predict(X) if y is None else np.asarray(y)
        rows = torch.tensor(validation.validate_data(self, X, reset=False, dtype=np.float64))
        unknown = sorted(set(np.unique(labels).tolist()) - set(self.classes_.tolist()))
        if unknown:
            raise ValueError(f"y has the labels {unknown}, which fit() has not seen")
        numbers = torch.from_numpy(np.searchsorted(self.classes_, labels).astype(np.int64))
        constants = pairwise_lipschitz(self.layer_)
        radii: NDArray[np.float64] = certified_radius(self.layer_, rows, numbers, constants).numpy()
        return radii
