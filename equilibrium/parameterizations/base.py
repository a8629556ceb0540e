"""Free parameters → explicit weights: what every parameterisation is, and the one that promises nothing."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.maps.dense import Dense
from contracting.modules.settings import WithSettings
from equilibrium.weights import NetworkWeights, Weights


class Parameterization(WithSettings):
    """Free parameters of a network; what a parameterisation of your own derives from.

    It brings ``explicit``, and an ``__init__`` that hands the sizes to this one and makes the parameters, with
    ``new_parameter`` or as in any module. If the weights depend on anything but parameters and buffers, it brings
    ``settings`` too, which are saved with the parameters. Nothing else is asked for. Whether the promises are kept says
    ``equilibrium.contracts.ParameterizationContract``.

    Args:
        in_features: size of x.
        hidden_features: n, size of z.
        out_features: size of y.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Raises:
        InputError: on sizes below one, or a dtype that is no floating-point type.
    """

    example: Tensor

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features = checks.whole_number("in_features", in_features)
        self.hidden_features = checks.whole_number("hidden_features", hidden_features)
        self.out_features = checks.whole_number("out_features", out_features)
        # a zero whose dtype and device are those of the module, wherever it is moved
        zero = torch.zeros((), device=device, dtype=checks.floating_dtype("dtype", dtype))
        self.register_buffer("example", zero, persistent=False)

    def new_parameter(self, *shape: int) -> nn.Parameter:
        """A parameter of the dtype and device of this module, without values yet."""
        return nn.Parameter(self.example.new_empty(shape))

    @abstractmethod
    def explicit(self) -> NetworkWeights:
        """The weights, differentiable in the free parameters, with the certificates that hold for every value of these.

        ``metric``, ``lipschitz`` and ``contraction_rate`` are None where nothing is certified.
        """

    def extra_repr(self) -> str:
        """Sizes."""
        sizes = f"in_features={self.in_features}, hidden_features={self.hidden_features}"
        return f"{sizes}, out_features={self.out_features}"


class DenseOptions(TypedDict, total=False):
    """The keyword arguments of ``DenseParameterization``, for all that pass them on."""

    feedthrough: bool
    device: torch.device | str | None
    dtype: torch.dtype | None


class DenseParameterization(Parameterization):
    """Free parameters of a network whose input and output weights are matrices."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        *,
        feedthrough: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, hidden_features, out_features, device=device, dtype=dtype)
        self.U = self.new_parameter(hidden_features, in_features)
        self.bias = self.new_parameter(hidden_features)
        self.output = self.new_parameter(out_features, hidden_features)
        self.output_bias = self.new_parameter(out_features)
        self.D = self.new_parameter(out_features, in_features) if feedthrough else None

    @abstractmethod
    def explicit(self) -> Weights: ...

    def with_state(self, W: Tensor, **claims: Any) -> Weights:
        """The weights with this W, (n, n), and what is certified of them by the names of ``Weights``."""
        own = {"input": self.U, "bias": self.bias, "output": self.output, "output_bias": self.output_bias}
        return Weights(state=Dense(W), **{**own, "feedthrough": self.D, **claims})

    def reset_parameters(self) -> None:
        """Draw new values: inputs and outputs as torch.nn.Linear does, no feedthrough."""
        for weight, bias in ((self.U, self.bias), (self.output, self.output_bias)):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        if self.D is not None:
            nn.init.zeros_(self.D)

    @property
    def settings(self) -> dict[str, Any]:
        """Whether there is a feedthrough."""
        return {"feedthrough": self.D is not None}

    def extra_repr(self) -> str:
        """Sizes and settings."""
        return super().extra_repr() + ("" if self.D is None else ", feedthrough=True")


class Unconstrained(DenseParameterization):
    """W itself is free: nothing is certified, an equilibrium need not exist. A control for experiments."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        **options: Unpack[DenseOptions],
    ):
        super().__init__(in_features, hidden_features, out_features, **options)
        self.W = self.new_parameter(hidden_features, hidden_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw new values with ‖W‖ < 1 in the mean, so that training can start."""
        super().reset_parameters()
        nn.init.normal_(self.W, std=0.3 / math.sqrt(self.hidden_features))

    def explicit(self) -> Weights:
        """The weights; no metric is claimed."""
        return self.with_state(self.W)
