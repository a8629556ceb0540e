"""Constants for all inputs that are given to a statement about some: believed for the weights they were proved for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from contracting import checks
from contracting.errors import InputError
from equilibrium.lipschitz.bounds import PairwiseLipschitz, certified_lipschitz, subjects
from equilibrium.lipschitz.certificate import LipschitzCertificate, Norm
from equilibrium.lipschitz.composite import Model

Constants = float | LipschitzCertificate | PairwiseLipschitz


def pair_constants(constants: Constants, model: Model, classes: int) -> Tensor:
    """Lipschitz constants in ℓ2 of yᵢ − yⱼ, proved for these very weights: (classes, classes), float64.

    Args:
        constants: one per pair of classes, a certificate of the whole map, or a number, which is proved first.
        model: the classifier.
        classes: the number of its outputs.

    Raises:
        InputError: on constants of other weights or of another norm, or a number that is smaller than what is proved.
    """
    if isinstance(constants, PairwiseLipschitz):
        _check_about(constants.whole, model)
        return constants.bounds
    if isinstance(constants, LipschitzCertificate):
        if constants.norm is not Norm.L2:
            raise InputError(f"constants must be of the ℓ2 norm, this certificate is of {constants.norm.value}")
        _check_about(constants, model)
        gamma = constants.bound
    elif isinstance(constants, Tensor):
        raise InputError(
            "constants must say whose they are: take pairwise_lipschitz(model) or certified_lipschitz(model) "
            "itself, or one number, which is proved first"
        )
    else:
        gamma = checks.number("constants", constants, low=0, high=math.inf, high_open=True)
        if not (proved := certified_lipschitz(model).bound) <= gamma:
            raise InputError(f"constants must be at least {proved:.9g}, the smallest constant proved for this model")
    return torch.full((classes, classes), math.sqrt(2) * gamma, dtype=torch.float64)


def _check_about(certificate: LipschitzCertificate, model: Model) -> None:
    if all(certificate.about != system.fingerprint for system in subjects(model)):
        raise InputError(
            "constants must be those of the present weights of model, these were proved for other ones: take "
            "pairwise_lipschitz(model) or certified_lipschitz(model) anew, after training and after a change of dtype"
        )
