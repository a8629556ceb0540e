"""Equilibrium networks in scikit-learn's conventions: ``from equilibrium.estimators import EquilibriumClassifier``.

This folder needs scikit-learn, the extra ``data``, and is imported by nobody else, so that the library does not.
"""

from equilibrium.estimators.classifier import EquilibriumClassifier
from equilibrium.estimators.regressor import EquilibriumRegressor

__all__ = ["EquilibriumClassifier", "EquilibriumRegressor"]
