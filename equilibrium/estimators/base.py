"""What the two estimators share: settings, training, and the certificates of what was trained."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from contracting import checks
from contracting.activations.names import activation_named
from contracting.loop.records import Stop
from equilibrium.layers import LBEN
from equilibrium.lipschitz import certified_lipschitz
from equilibrium.training.data import Samples
from equilibrium.training.loop import train
from equilibrium.training.losses import Function, Loss
from equilibrium.training.records import Callback

sklearn_base = checks.extra("sklearn.base", "data", "the estimators of equilibrium")
validation = checks.extra("sklearn.utils.validation", "data", "the estimators of equilibrium")

# Predictions are equilibria to this relative residual, so that a row is the same whatever its company.
_TIGHT = Stop(rtol=1e-12, atol=1e-14)
_ROWS = 4096  # so many rows are predicted at once, which bounds the memory


class EquilibriumEstimator(sklearn_base.BaseEstimator):  # type: ignore[misc, name-defined]
    """An LBEN with the settings of its training; the two estimators say what is fitted.

    Args:
        hidden_features: n, the neurons.
        lipschitz: γ, the certified ℓ2 Lipschitz constant from the inputs to the outputs, or None.
        contraction_rate: c, the certified rate of the flow whose equilibrium is computed, or None.
        epsilon: strong monotonicity that is built in; without effect where ``contraction_rate`` brings its own.
        activation: its name, as of ``activation_named``.
        loss: None takes the usual one; see ``train``.
        epochs: passes over the rows.
        batch_size: rows per step.
        learning_rate: the largest.
        noise: standard deviation of what is added to the inputs in training.
        random_state: of the weights and the order of the rows: an int, a ``RandomState`` or None.
        checkpoint: file from which ``fit`` goes on where it was interrupted, or None.
        callback: is told of every step; see ``train``.

    Attributes:
        layer_: the network, float64, in evaluation mode.
        record_: what every epoch of the training brought.
        n_features_in_: number of inputs.
    """

    def __init__(
        self,
        hidden_features: int = 32,
        *,
        lipschitz: float | None = None,
        contraction_rate: float | None = None,
        epsilon: float = 1.0,
        activation: str = "ReLU",
        loss: Loss | Function | None = None,
        epochs: int = 30,
        batch_size: int = 64,
        learning_rate: float = 0.03,
        noise: float = 0.0,
        random_state: Any = None,
        checkpoint: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
    ):
        self.hidden_features = hidden_features
        self.lipschitz = lipschitz
        self.contraction_rate = contraction_rate
        self.epsilon = epsilon
        self.activation = activation
        self.loss = loss
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.noise = noise
        self.random_state = random_state
        self.checkpoint = checkpoint
        self.callback = callback

    def _fitted_to(self, X: NDArray[Any], targets: Tensor, outputs: int) -> Self:  # noqa: N803  # scikit-learn's name
        """Train a new layer on inputs (count, in) and targets."""
        generator = checks.extra("sklearn.utils", "data", "fit()").check_random_state(self.random_state)
        seed = int(generator.randint(2**31 - 1))
        rate = self.contraction_rate
        asked: dict[str, Any] = {"epsilon": self.epsilon} if rate is None else {"contraction_rate": rate}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layer = LBEN(
                X.shape[1],
                self.hidden_features,
                outputs,
                lipschitz=self.lipschitz,
                **asked,
                activation=activation_named(self.activation),
                dtype=torch.float64,
            )
        self.record_ = train(
            layer,
            Samples(name="the data of fit()", train_inputs=torch.tensor(X), train_targets=targets),
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            loss=self.loss,
            noise=self.noise,
            seed=seed,
            callback=self.callback,
            checkpoint=self.checkpoint,
        )
        self.layer_ = layer.eval().requires_grad_(False)
        return self

    @torch.no_grad()
    def _outputs(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """y of the inputs, (count, out)."""
        validation.check_is_fitted(self)
        rows = torch.tensor(validation.validate_data(self, X, reset=False, dtype=np.float64))
        weights, parts = self.layer_.weights(), []
        for part in torch.split(rows, _ROWS):
            parts.append(weights.readout(self.layer_.solve(part, stop=_TIGHT).z, part))
        outputs: NDArray[np.float64] = torch.cat(parts).numpy()
        return outputs

    def certified_lipschitz(self) -> float:
        """The certified ℓ2 Lipschitz constant from the inputs to the outputs of what was trained.

        Raises:
            PreconditionError: if nothing can be certified.
        """
        validation.check_is_fitted(self)
        return certified_lipschitz(self.layer_).bound
