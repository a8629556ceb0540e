"""Networks on images at the edges: one pixel, kernels wider than the image, one row or none, other precisions."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch

from contracting.activations.base import Activation
from contracting.activations.catalogue import ReLU, Tanh
from contracting.activations.clamped import zero_border
from contracting.errors import Status
from contracting.loop.records import Stop
from contracting.loop.run import solve
from contracting.maps.convolution import CircularConvolution
from contracting.maps.transform import by_neuron
from equilibrium import PeacemanRachford, SemismoothNewton
from equilibrium.convolution import Geometry, LBENConv2d, MetricShape
from equilibrium.convolution.parameterization import readout_bound
from equilibrium.convolution.readout import Seen
from equilibrium.lipschitz import certified_lipschitz

EDGES = [
    {"image": (1, 1)},
    {"image": (1, 1), "border": 0},  # a torus of one position, around which every kernel wraps
    {"image": (2, 3), "border": 0, "kernel_size": 7, "input_kernel_size": 5},
    {"image": (1, 6), "stride": 1, "pool": 1, "metric": MetricShape.FULL},
    {"image": (5,), "border": 2, "kernel_size": 5},
    {"image": (1,), "border": 0, "metric": MetricShape.POSITION},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", EDGES)
def test_small_images_and_wide_kernels(options: dict[str, object], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = LBENConv2d(2, 3, 2, lipschitz=1.0, dtype=dtype, **options)  # type: ignore[arg-type]
    x = torch.randn(4, layer.in_features, dtype=dtype)
    y = layer(x)
    dense = layer.double().weights().dense()
    again = solve(dense.problem(x.double(), layer.activation), SemismoothNewton())
    tolerance = 1e-6 if dtype == torch.float64 else 1e-4
    assert torch.allclose(dense.readout(again.z, x.double()), y.double(), atol=tolerance)
    y.square().sum().backward()  # type: ignore[no-untyped-call]
    assert certified_lipschitz(layer).bound <= 1 + 1e-6


def test_one_row_and_none() -> None:
    torch.manual_seed(0)
    layer = LBENConv2d(1, 20, 2, image=(5, 4), dtype=torch.float64)  # wide enough for products by the transform
    x = torch.randn(3, 1, 5, 4, dtype=torch.float64)
    assert layer(x[:0]).shape == (0, 2) and layer.solve(x[:0]).z.shape == (0, layer.hidden_features)
    assert layer(x[0]).shape == (2,)
    assert torch.allclose(layer(x[:1]), layer(x)[:1], atol=1e-7)
    (gradient,) = torch.autograd.grad(layer(x[:0]).sum(), layer.parameterization.A)
    assert bool((gradient == 0).all())


def test_a_row_that_is_not_finite_fails_alone() -> None:
    torch.manual_seed(0)
    layer = LBENConv2d(1, 20, 2, image=(5, 4))
    x = torch.randn(70, 20)
    x[7, 3] = float("nan")
    x[69, 0] = float("inf")
    solution = layer.solve(x, PeacemanRachford(), throw=False)
    lost = torch.zeros(70, dtype=torch.bool)
    lost[[7, 69]] = True
    assert bool((solution.status[lost] == Status.NONFINITE).all()) and bool(solution.converged[~lost].all())
    assert torch.allclose(solution.z[~lost], layer.solve(x[~lost]).z, atol=1e-4)


def test_copies_pickles_and_states_are_the_same_network() -> None:
    torch.manual_seed(0)
    layer = LBENConv2d(1, 20, 2, image=(5, 4), lipschitz=2.0)
    x = torch.randn(3, 1, 5, 4)
    with torch.no_grad():
        before = layer(x)
    other = LBENConv2d(1, 20, 2, image=(5, 4), lipschitz=2.0)
    with torch.no_grad():
        assert not torch.allclose(other(x), before)
        other.load_state_dict(layer.state_dict())  # nothing of the first evaluation may stay
        assert torch.allclose(other(x), before)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for again in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        with torch.no_grad():  # as before: with gradients, another step may be chosen
            assert torch.allclose(again(x), before)
        again.parameterization.A.data.mul_(-0.5).add_(0.1)
        with torch.no_grad():
            assert not torch.allclose(again(x), before)
            assert torch.allclose(layer(x), before)


def test_products_follow_the_device_of_their_tensors() -> None:
    """On the device without numbers, where any tensor left on the CPU would be an error."""
    kernel = torch.empty(30, 30, 5, 5, device="meta")
    linear = CircularConvolution(kernel, grid=(6, 7))
    z = torch.empty(4, linear.size, device="meta")
    assert linear.apply(z).device.type == linear.adjoint.apply(z).device.type == "meta"
    assert linear.laid_out(z).shape == linear.affine(z, z).shape == z.shape
    assert linear.pullback(z, z)[0].shape == kernel.shape


def test_the_tolerance_of_a_solve_is_kept_in_both_precisions() -> None:
    torch.manual_seed(0)
    for dtype, rtol in ((torch.float32, 1e-5), (torch.float64, 1e-11)):
        layer = LBENConv2d(1, 20, 2, image=(6, 6), dtype=dtype)
        solution = layer.solve(torch.randn(5, 36, dtype=dtype), stop=Stop(rtol=rtol, atol=0.0))
        problem = solution.problem
        residual = problem.residual(solution.z).norm(dim=-1) / problem.map(solution.z).norm(dim=-1)
        assert float(residual.max()) <= rtol * 1.01


@pytest.mark.parametrize("inner", [ReLU(), Tanh()])
def test_the_reflection_of_a_clamped_activation_in_both_layouts(inner: Activation) -> None:
    activation = zero_border(inner, channels=2, grid=(4, 3), border=1)
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = 2 * activation.prox(x, 0.7) - x
    reflect = activation.reflection(0.7)
    for rows in (x, by_neuron(x)):
        assert torch.allclose(reflect(rows), expected, atol=1e-12)
        out = torch.empty_like(rows)
        assert torch.allclose(reflect(rows, out=out), expected, atol=1e-12)
        assert torch.allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("side", [3, 9], ids=["fits", "wraps around"])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_part_of_w_that_is_no_convolution_is_its_products(stride: int, side: int) -> None:
    """Pooling, readout, convolution and metric against the matrix, with its norm from above; cells leave a rest."""
    geometry = Geometry(in_channels=2, channels=3, image=(4, 6), stride=stride, pool=3)
    generator = torch.Generator().manual_seed(stride)
    output = torch.randn(2, geometry.cell_features, generator=generator, dtype=torch.float64)
    kernel = torch.randn(3, 2, side, side, generator=generator, dtype=torch.float64)
    weights = torch.rand(geometry.hidden_features, generator=generator, dtype=torch.float64) + 0.1
    pixels = torch.eye(2 * math.prod(geometry.torus), dtype=torch.float64)
    units = torch.eye(geometry.hidden_features, dtype=torch.float64)
    of_input, of_readout = geometry.convolve(pixels, kernel) * weights, output @ geometry.average(units).mT
    for factor, T in (
        (Seen(geometry, output), of_readout),
        (Seen(geometry, output, kernel, weights), torch.cat([of_readout, of_input])),
    ):
        assert factor.rank == len(T)
        assert torch.allclose(factor.apply(units), T.mT, atol=1e-12)
        assert torch.allclose(factor.adjoint(torch.eye(len(T), dtype=torch.float64)), T, atol=1e-12)
        square = float(torch.linalg.matrix_norm(T, 2)) ** 2
        assert square <= factor.square_norm() <= 40 * square
        if side == 3:
            assert factor.square_sum() == pytest.approx(float(T.square().sum()))
    bound = readout_bound(output, geometry).repeat_interleave(math.prod(geometry.grid))
    assert float(torch.linalg.eigvalsh(torch.diag(bound) - of_readout.mT @ of_readout).min()) >= -1e-9
