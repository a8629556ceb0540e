"""Several resolutions: the one convolution of all phases against the networks of torch's convolutions it stands for."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from contracting.activations.catalogue import Tanh
from contracting.errors import InputError
from contracting.gradients.implicit import Implicit
from contracting.loop.records import Stop
from contracting.maps.dense import Dense
from contracting.maps.polyphase import from_phases, joined, phases, separated
from equilibrium import ForwardBackward, PeacemanRachford, SemismoothNewton, Tseng
from equilibrium.convolution import MetricShape, MultiScaleConv2d
from equilibrium.lipschitz import certified_lipschitz


def make(seed: int, **options: object) -> MultiScaleConv2d:
    torch.manual_seed(seed)
    settings: dict[str, object] = {"channels": (1, 2), "image": (4, 4), "epsilon": 0.3, "dtype": torch.float64}
    settings.update(options)
    layer = MultiScaleConv2d(1, out_features=2, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return layer


def convolved(z: Tensor, kernel: Tensor, stride: int = 1) -> Tensor:
    """Circular convolution with a stride, by torch."""
    dims = kernel.ndim - 2
    padded = F.pad(z, [kernel.shape[-1] // 2] * 2 * dims, mode="circular")
    return (F.conv1d if dims == 1 else F.conv2d)(padded, kernel, stride=stride)


def transposed(function, shape, v):  # type: ignore[no-untyped-def]
    """The adjoint of a linear function of several images, by its derivative."""
    zeros = [torch.zeros(s, dtype=torch.float64) for s in shape]
    return torch.func.vjp(lambda *z: tuple(function(list(z))), *zeros)[1](tuple(v))


@torch.no_grad()
def by_resolutions(layer: MultiScaleConv2d, z: list[Tensor]) -> list[Tensor]:
    """(I − W)z = Ψ(εz + gAᵀAz + h(Bᵀ − B)z) from convolutions of the resolutions, without a border."""
    free = layer.parameterization
    dims = len(layer.geometry.grid)
    each = [factor**dims for factor in free.factors]
    norm_A = sum(p * float(k.square().sum()) for p, k in zip(each, free.own, strict=True))
    norm_A += sum(p * float(k.square().sum()) for p, k in zip(each[1:], free.couplings, strict=True))
    norm_B = sum(p * float(k.square().sum()) for p, k in zip(each, free.skew, strict=True))

    def A(z: list[Tensor]) -> list[Tensor]:
        out = [convolved(image, k) for image, k in zip(z, free.own, strict=True)]
        return [out[0], *[y + convolved(x, k, 2) for y, x, k in zip(out[1:], z[:-1], free.couplings, strict=True)]]

    def B(z: list[Tensor]) -> list[Tensor]:
        return [convolved(image, k) for image, k in zip(z, free.skew, strict=True)]

    shapes = [image.shape for image in z]
    AtA, Bz, Btz = transposed(A, shapes, A(z)), B(z), transposed(B, shapes, z)
    g, h = float(free.log_g.exp()) / norm_A, float(free.log_h.exp()) / norm_B**0.5
    psi = torch.zeros(sum(free.channels)) if free.psi is None else free.psi.detach().expand(sum(free.channels))
    scales = [p.exp().reshape(-1, *[1] * dims) for p in psi.split(free.channels)]
    return [
        s * (free.epsilon * x + g * a + h * (bt - b))
        for s, x, a, b, bt in zip(scales, z, AtA, Bz, Btz, strict=True)
    ]


CASES = [
    {"channels": (1, 2), "image": (4, 4)},
    {"channels": (2, 1, 2), "image": (8,), "kernel_size": 3},
    {"channels": (1, 1, 2), "image": (4, 8), "kernel_size": 5, "input_kernel_size": 3},
    {"channels": (2,), "image": (3, 2)},
    {"channels": (1, 2), "image": (4, 4), "metric": MetricShape.SCALAR, "border": 0},
    {"channels": (1, 2), "image": (4, 4), "metric": MetricShape.IDENTITY, "stride": 2, "border": 2},
]


@pytest.mark.parametrize("case", CASES)
def test_the_operator_is_that_of_convolutions_between_resolutions(case: dict[str, object]) -> None:
    layer = make(0, **case)
    with torch.no_grad():
        weights = layer.weights()
    z = torch.randn(3, layer.hidden_features, dtype=torch.float64)
    images = list(layer.as_images(z))
    found = layer.as_images(z - weights.state.apply(z))
    for mine, expected in zip(found, by_resolutions(layer, images), strict=True):
        assert mine.shape == expected.shape
        assert float((mine - expected).detach().abs().max()) <= 1e-10
    # the input reaches the finest resolution only, as torch's strided convolution of the padded image
    free, geometry = layer.parameterization, layer.geometry
    x = torch.randn(3, layer.in_features, dtype=torch.float64)
    q = layer.as_images(weights.problem(x, layer.activation).q)
    padded = F.pad(x.reshape(3, 1, *geometry.image), [geometry.border * geometry.stride] * 2 * len(geometry.image))
    bias = free.bias.detach().split(free.channels)
    expected = convolved(padded, free.U, free.input_stride) + bias[0].reshape(-1, *[1] * len(geometry.grid))
    assert torch.allclose(q[0], expected, atol=1e-12)
    for image, b in zip(q[1:], bias[1:], strict=True):
        assert torch.allclose(image, b.reshape(-1, *[1] * len(geometry.grid)).expand(image.shape), atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_monotonicity_and_the_lipschitz_constant_are_certified(case: dict[str, object]) -> None:
    for seed in range(4):
        gamma = 10 ** (seed % 3 - 1.0)
        layer = make(seed, **case, lipschitz=gamma)
        with torch.no_grad():
            weights = layer.weights()
            dense = weights.dense()
        assert weights.metric is not None
        exact = Dense(dense.state.to_dense()).operator(weights.metric).bounds
        found = weights.state.operator(weights.metric).bounds
        for name, value in vars(exact).items():
            assert getattr(found, name) == pytest.approx(value, abs=1e-8), name
        assert found.monotonicity > 0
        W, U, C = dense.state.to_dense(), dense.input, dense.output
        lam = torch.diag(weights.metric.weights)
        excess = 2 * lam - lam @ W - W.mT @ lam - (C.mT @ C + lam @ U @ U.mT @ lam) / gamma
        assert float(torch.linalg.eigvalsh((excess + excess.mT) / 2).min()) >= 0.6 * (1 - 1e-9)  # 2ε
        assert certified_lipschitz(layer).bound <= gamma * (1 + 1e-9)


def test_solvers_with_and_without_a_resolvent_agree() -> None:
    layer = make(1, lipschitz=1.0, activation=Tanh())
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    stop = Stop(rtol=1e-10)
    z = layer.solve(x, PeacemanRachford(), stop=stop).z
    for method in (Tseng(), ForwardBackward(), SemismoothNewton()):
        assert torch.allclose(layer.solve(x, method, stop=stop).z, z, atol=1e-8)
    copied = copy.deepcopy(layer)
    copied.load_state_dict(layer.state_dict())
    assert torch.equal(copied(x), layer(x))
    assert layer(x[:0]).shape == (0, 2) and layer.solve(x[:0]).z.shape == (0, layer.hidden_features)


def test_gradients() -> None:
    layer = make(2, activation=Tanh(), lipschitz=1.0, channels=(1, 1), border=0)
    layer.stop, layer.backward = Stop(rtol=1e-12, atol=0.0), Implicit(stop=Stop(rtol=1e-13, atol=0.0))
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in layer.parameters())

    def f(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(f, values, fast_mode=True)


@pytest.mark.parametrize(("out", "into", "stride"), [(1, 1, 1), (2, 2, 1), (1, 2, 2), (2, 4, 2), (3, 1, 2), (4, 4, 1)])
@pytest.mark.parametrize("side", [1, 3, 7])
def test_phases_are_those_of_the_images(out: int, into: int, stride: int, side: int) -> None:
    if stride * out != into and into != 1:
        pytest.skip("such images do not lie on one grid")
    kernel = torch.randn(2, 3, side, side, dtype=torch.float64)
    coarse = 8  # wide enough for every kernel not to wrap
    fine = torch.randn(2, 3, *[coarse * (into if into > 1 else out * stride)] * 2, dtype=torch.float64)
    expected = pixel_unshuffle(convolved(fine, kernel, stride), out)
    K = phases(kernel, out=out, into=into, stride=stride)
    seen = convolved(pixel_unshuffle(fine, into), K, 1 if into > 1 else out * stride)
    assert torch.allclose(seen, expected, atol=1e-12)
    assert torch.equal(joined(pixel_unshuffle(fine, into), into, 2), fine)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"\bchannels\b"):
        make(0, channels=())
    with pytest.raises(InputError, match=r"\bmetric\b"):
        make(0, metric=MetricShape.FULL)
    with pytest.raises(InputError, match=r"\bchannels\b"):
        make(0, channels=(2, 0))
    with pytest.raises(InputError, match=r"\bstride\b"):
        make(0, image=(5, 4))


@pytest.mark.parametrize(("dims", "factor"), [(1, 2), (1, 3), (2, 2), (2, 1)])
def test_phases_of_images_and_kernels_are_taken_apart_and_put_together(dims: int, factor: int) -> None:
    images = torch.arange(2.0 * 3 * (4 * factor) ** dims).reshape(2, 3, *[4 * factor] * dims)
    parts = separated(images, factor, dims)
    assert torch.equal(joined(parts, factor, dims), images)
    if dims == 2:
        assert torch.equal(parts, pixel_unshuffle(images, factor))
    coarse = torch.randn(2, 3 * factor**dims, *[5] * dims)
    kernel = from_phases(coarse, factor)
    wide = phases(kernel, out=1, into=factor, stride=factor)
    margin = (wide.shape[-1] - 5) // 2
    assert torch.equal(wide, F.pad(coarse, [margin] * 2 * dims))
