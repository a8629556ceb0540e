"""Read and write the checkpoints of the reference code of arXiv 2010.01732 and arXiv 2006.08591."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contracting import checks
from contracting.activations.catalogue import ReLU
from contracting.errors import InputError
from equilibrium.convolution.checkpoints import convolutional_layer, is_convolutional
from equilibrium.files import write_tensors
from equilibrium.layers import LBEN, EquilibriumLayer
from equilibrium.parameterizations import DenseParameterization, Monotone, Unconstrained

_PREFIX = "mon.linear_module."
_HEAD = {"Wout.weight": "output", "Wout.bias": "output_bias"}
_INPUT = {"U.weight": "U", "U.bias": "bias"}
_SPELLINGS = {"psi", "Lambda"}  # of Ψ, by its logarithm and by itself

# reference key → our parameter, for each dense layout of the reference code
_LAYOUTS: dict[str, dict[str, str]] = {
    "lipschitz": {
        "psi": "psi",
        "B.weight": "U",
        "B.bias": "bias",
        "V.weight": "V",
        "S.weight": "S",
        "G.weight": "output",
        "G.bias": "output_bias",
    },
    "well-posed": {"Lambda": "psi", "V.weight": "V", "S.weight": "S", **_INPUT, **_HEAD},
    "monDEQ": {"A.weight": "V", "B.weight": "S", **_INPUT, **_HEAD},
    "unconstrained": {"Wp": "W", **_INPUT, **_HEAD},
}


def load_reference(
    path: str | os.PathLike[str],
    *,
    lipschitz: float | None = None,
    epsilon: float | None = None,
    image: tuple[int, int] = (28, 28),
    pool: int | None = None,
    dtype: torch.dtype | None = None,
) -> EquilibriumLayer:
    """Read a checkpoint of the reference code: its dense layouts, and a single convolution with or without a bound.

    The formulas of the convolutional layouts are in ``equilibrium.convolution.checkpoints``. γ is certified for the map
    from the image to y as the layer applies it.

    Args:
        path: a file with a state dict of plain tensors.
        lipschitz: γ the model was trained with; needed exactly for the layouts with a Lipschitz bound, dense or
            convolutional, because the reference code does not store it; files of ``save_reference`` say it themselves.
        epsilon: ε the model was trained with, which the reference code does not store either; None takes what the file
            says, or 1. It is 1 for the authors' dense models, for the convolutional ones of their
            ``conv_experiment_v2`` with identity, channel, image or full metric, and for files whose gains g and h are
            exactly 1; it is 0.1 for their later convolutional ones.
        image: (height, width) of the images of a convolutional model, which the file does not store; not used
            otherwise.
        pool: side of the cells that a convolutional readout averages; None finds it from the shape of the readout, and
            asks for it where several sides fit.
        dtype: floating-point type of the layer; None keeps that of the file.

    Returns:
        The layer, on the CPU: an ``LBEN``, for a convolution a ``ConvolutionalLayer``, or for the unconstrained layout
        an ``EquilibriumLayer`` without certificate.

    Raises:
        InputError: if the file is missing, damaged or of another layout, γ is missing or out of place, or γ or ε is not
            what the file says.
    """
    tensors, notes = _plain_tensors(Path(path))
    lipschitz = _agreed("lipschitz", lipschitz, notes, path)
    epsilon = _agreed("epsilon", epsilon, notes, path) or 1.0
    short = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    convolutional = is_convolutional(short)
    if convolutional:
        layout, parameters = "convolutional", short
        # the place of the readout is all that tells one from the other where the gains have the same names
        bounded = _PREFIX + "Wout.weight" in tensors or "u" in short
    else:
        layout, parameters = _recognise(Path(path), short)
        bounded = layout == "lipschitz"
    if bounded and lipschitz is None:
        kind = " convolutional" if convolutional else ""
        raise InputError(f"{path} holds a Lipschitz-bounded{kind} model, whose γ is not stored: pass lipschitz=…")
    if not bounded and lipschitz is not None:
        raise InputError(f"{path} holds a {layout} model, which has no Lipschitz bound: leave lipschitz out")
    if convolutional:
        return convolutional_layer(
            str(path), parameters, image=image, epsilon=epsilon, lipschitz=lipschitz, pool=pool, dtype=dtype
        )
    for name in ("U", "output"):
        if parameters[name].ndim != 2:
            raise InputError(f"{name} in {path} must be a matrix, got shape {tuple(parameters[name].shape)}")
    hidden, inputs = parameters["U"].shape
    outputs = parameters["output"].shape[0]
    dtype = dtype or parameters["U"].dtype
    if layout == "unconstrained":
        layer = EquilibriumLayer(Unconstrained(inputs, hidden, outputs, dtype=dtype))
    else:
        parameters["S"] = _our_skew(parameters["S"])
        layer = LBEN(
            inputs,
            hidden,
            outputs,
            lipschitz=lipschitz,
            epsilon=epsilon,
            learn_metric=layout != "monDEQ",
            dtype=dtype,
        )
    with torch.no_grad():
        for name, value in parameters.items():
            target = getattr(layer.parameterization, name)
            target.copy_(checks.finite(f"{name} in {path}", checks.shape(f"{name} in {path}", value, target.shape)))
    return layer


def save_reference(layer: EquilibriumLayer, path: str | os.PathLike[str]) -> None:
    """Write a dense layer in the layout of the reference code; γ and ε are noted where that does not look.

    Args:
        layer: an ``LBEN`` without contraction rate and feedthrough, or an unconstrained layer; σ is ReLU, which the
            layout does not say but ``load_reference`` takes for granted.
        path: file to write; an existing one is replaced only when the new one is complete.

    Raises:
        InputError: if the reference layout cannot hold the layer, or the file cannot be written.
    """
    free = layer.parameterization
    if not isinstance(free, DenseParameterization):
        raise InputError("only dense layers are written in the reference layout; save the state_dict of this one")
    if layer.activation != ReLU():
        raise InputError(
            f"the reference layout is read with ReLU; this layer has {layer.activation}: save its state_dict()"
        )
    if free.D is not None:
        raise InputError("the reference layout has no feedthrough term; this layer has one")
    if isinstance(free, Unconstrained):
        layout = "unconstrained"
    elif not isinstance(free, Monotone) or free.contraction_rate is not None:
        raise InputError("the reference layout has no contraction rate; this layer has one")
    elif free.log_gamma is not None:
        layout = "lipschitz"
        if free.psi is None:
            raise InputError("the reference layout with a Lipschitz bound has a learnt metric; this layer has none")
    else:
        layout = "monDEQ" if free.psi is None else "well-posed"
    notes = {} if isinstance(free, Unconstrained) else {"epsilon": free.epsilon}
    if isinstance(free, Monotone) and free.lipschitz is not None:
        notes["lipschitz"] = float(free.lipschitz.detach())
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    vars(tensors)["_metadata"] = {"": notes}  # where torch keeps notes on a state dict, which loading passes over
    for theirs, ours in _LAYOUTS[layout].items():
        value = getattr(free, ours).detach().cpu().clone()
        if ours == "S":
            value = _our_skew(value)  # the conversion is its own inverse
        if theirs == "Lambda":
            value = value.exp()
        tensors[theirs if theirs in _HEAD else _PREFIX + theirs] = value
    write_tensors(path, tensors)


def _our_skew(S: Tensor) -> Tensor:
    # ours is S − Sᵀ inside the bracket; the reference has Sᵀ − S there, and its monDEQ has W = … + B − Bᵀ, which is the
    # same sign
    return S.mT


def _agreed(name: str, given: float | None, notes: Mapping[str, Any], path: str | os.PathLike[str]) -> float | None:
    """A number that was given, or that the file says; None where neither is.

    Raises:
        InputError: if they differ.
    """
    known = notes.get(name)
    if not isinstance(known, float):
        return given
    if given is not None and not math.isclose(given, known, rel_tol=1e-6):
        raise InputError(f"{name} is {known:g} in {path}, got {given:g}: leave it out, or pass what the file says")
    return known if given is None else given


def _plain_tensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The tensors of a state dict, and what is noted beside them."""
    if not path.is_file():
        raise InputError(f"no checkpoint file at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path} is not a readable checkpoint of plain tensors ({type(error).__name__}): "
            "it must have been written by torch.save(model.state_dict(), …)"
        ) from None
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} must hold a state dict of tensors, got {type(content).__name__}")
    notes = getattr(content, "_metadata", {})
    found = notes.get("", {}) if isinstance(notes, Mapping) else {}
    return dict(content), found if isinstance(found, Mapping) else {}


def _recognise(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The dense layout, and its tensors by our names; Ψ may be written as Lambda, or as its logarithm psi."""
    found = _SPELLINGS & tensors.keys()
    matrices = all(value.is_floating_point() and value.ndim <= 2 for value in tensors.values())
    for layout, names in _LAYOUTS.items():
        spelt = {theirs for theirs, ours in names.items() if ours == "psi"}
        if not matrices or tensors.keys() - found != names.keys() - spelt or len(found) != len(spelt):
            continue
        parameters = {names[theirs]: value for theirs, value in tensors.items() if theirs not in found}
        if "Lambda" in found:  # in double precision: the layer's may be finer than the file's
            parameters["psi"] = checks.positive_tensor(f"Lambda in {path}", tensors["Lambda"].double()).log()
        elif found:
            parameters["psi"] = tensors["psi"]
        return layout, parameters
    raise InputError(
        f"{path} has an unknown layout with the keys {', '.join(sorted(tensors)) or '(none)'}; "
        f"known are those of the reference code, a single convolution and the dense ones: {', '.join(_LAYOUTS)}"
    )
