"""A regressor whose slope is certified."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from equilibrium.estimators.base import EquilibriumEstimator, sklearn_base, validation


class EquilibriumRegressor(sklearn_base.RegressorMixin, EquilibriumEstimator):  # type: ignore[misc, name-defined]
    """An equilibrium network as a regressor of one or several numbers, with a certified slope.

    Settings and attributes as of ``EquilibriumEstimator``; γ is in units of y over those of X, which are not scaled.
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:  # noqa: N803
        """Train on inputs (count, in) and numbers (count,) or (count, out); raises as that of the classifier."""
        rows, numbers = validation.validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        targets = torch.tensor(np.asarray(numbers, dtype=np.float64))
        self._single = targets.ndim == 1
        targets = targets.reshape(len(targets), -1)
        return self._fitted_to(rows, targets, targets.shape[1])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """The outputs, in the shape of y in ``fit``."""
        outputs = self._outputs(X)
        return outputs[:, 0] if self._single else outputs
