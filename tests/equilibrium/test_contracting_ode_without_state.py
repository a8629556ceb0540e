"""Without a state a contracting neural ODE is an equilibrium network: the same weights, outputs and Lipschitz bound."""

from __future__ import annotations

import pytest
import torch

from contracting import ContractingODE, ReLU, Stop
from equilibrium import LBEN, certified_lipschitz

DOUBLE = torch.float64


@pytest.mark.parametrize("feedthrough", [False, True])
def test_without_a_state_it_is_an_equilibrium_network(feedthrough: bool) -> None:
    torch.manual_seed(0)
    gamma, stop = 0.7, Stop(rtol=1e-14, atol=1e-15)
    layer = ContractingODE(
        4, 0, 6, 3, lipschitz=gamma, feedthrough=feedthrough, activation=ReLU(), stop=stop, dtype=DOUBLE
    )
    free = layer.parameterization
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
        weights = layer.weights()
        assert weights.D is not None and weights.D12 is not None and weights.D21 is not None
        network = LBEN(
            4, 6, 3, lipschitz=gamma, feedthrough=feedthrough, epsilon=1e-3, activation=ReLU(), stop=stop, dtype=DOUBLE
        )
        own = network.parameterization
        lam = weights.multiplier
        own.U.copy_(weights.D12), own.bias.copy_(weights.bias)
        own.output.copy_(weights.D21), own.output_bias.copy_(weights.output_bias)
        own.psi.copy_(-lam.log())
        if feedthrough:
            own.D.copy_(free.D22)
        # what is left of Λ(I − D) without the terms that γ costs and without ε is a square, VᵀV
        own.V.zero_(), own.S.zero_()
        costs = lam[:, None] * (torch.eye(6, dtype=DOUBLE) - network.weights().state.to_dense())
        bracket = lam[:, None] * (torch.eye(6, dtype=DOUBLE) - weights.D)
        rest = (bracket + bracket.mT) / 2 - (costs + costs.mT) / 2
        own.V.copy_(torch.linalg.cholesky(rest).mT)
        own.S.copy_((bracket - bracket.mT) / 4)
        same = network.weights()
        assert torch.allclose(same.state.to_dense(), weights.D, rtol=1e-12, atol=1e-12)
        if feedthrough:
            assert torch.allclose(same.feedthrough, weights.D22, rtol=1e-12)
        x = torch.randn(10, 4, dtype=DOUBLE)
        assert torch.allclose(layer(None, torch.zeros(1), x)[0], network(x), rtol=1e-12, atol=1e-12)
        assert same.lipschitz is not None and float(same.lipschitz) == pytest.approx(gamma)
        assert [certificate.gain for certificate in layer.certificates()] == [gamma]  # type: ignore[union-attr]
        assert certified_lipschitz(same).bound <= gamma * (1 + 1e-9)
        # an input that moves is seen at once, as there is nothing to remember it
        moving = torch.randn(5, 10, 4, dtype=DOUBLE)
        assert torch.allclose(layer(None, torch.arange(5.0), moving)[3], network(moving[3]), rtol=1e-11, atol=1e-12)
