"""Tracking: enough steps, known beforehand, and errors that are never larger than said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from contracting import Activation, Identity, InputError, PreconditionError, ReLU
from contracting.certificates import CertificateError
from equilibrium import EquilibriumLayer, LBENConv2d, Unconstrained
from equilibrium.tracking import FixedTracking, TrackedFrame, Tracker, check_tracking, track_inputs
from tests.equilibrium.tracking.instances import F64, distances, exact, known_layer, layer_of, walk


def ratios(layer: EquilibriumLayer, x: Tensor, frame: TrackedFrame) -> tuple[float, float]:
    """Errors over their bounds, the largest of all streams: of z and of y."""
    z, y = frame.equilibrium.reshape(-1, layer.hidden_features), frame.output.reshape(-1, layer.out_features)
    of_z, of_y = distances(layer, x, z, y)
    return float((of_z / frame.error.flatten()).max()), float((of_y / frame.output_error.flatten()).max())


@pytest.mark.parametrize("activation", [Identity(), ReLU()], ids=["linear", "ReLU"])
def test_a_network_that_is_linear_where_it_is_attains_every_constant(activation: Activation) -> None:
    """And so half of L, or of ρ, is exceeded by the very next frame."""
    layer, x = known_layer(activation), torch.tensor([[1.0, 0.5]], dtype=F64)
    module = FixedTracking(layer, steps=3)
    certificate = module.certificate
    assert certificate.factor == pytest.approx(0.5, abs=0.01) and certificate.speed == pytest.approx(1, abs=1e-6)
    state = module.follow(x, module.start(x), 1e-9)[0].state
    moved = x + torch.tensor([[0.25, 0.0]], dtype=F64)
    found = module(moved, state)
    (error,), _ = distances(layer, moved, found.z, found.y)
    assert float(error) == pytest.approx(0.25 * certificate.factor**3, rel=0.05)
    assert float(found.z_error) >= float(error) >= 0.9 * float(found.z_error)
    half = replace(certificate.motion, bound=certificate.speed / 2)
    for wrong in (replace(certificate, motion=half), replace(certificate, factor=certificate.factor / 2)):
        module.certificate = wrong
        assert float(module(moved, state).z_error) < 0.6 * float(error)


def test_constants_that_are_too_small_are_refused() -> None:
    layer = layer_of()
    certificate, weights = Tracker(layer).certificate, layer.weights()
    slopes = layer.activation.slopes
    assert check_tracking(certificate, weights, slopes) > 0
    half = replace(certificate.motion, bound=certificate.speed / 2)
    for wrong in (
        replace(certificate, motion=half),
        replace(certificate, factor=certificate.factor * (1 - 1e-6)),
        replace(certificate, factor=1.0),
        replace(certificate, step=2 * certificate.step),
    ):
        with pytest.raises(CertificateError):
            check_tracking(wrong, weights, slopes)
    for other in (layer_of(1), layer_of(hidden=5)):
        with pytest.raises(CertificateError):
            check_tracking(certificate, other.weights(), slopes)


LAYERS: dict[str, Callable[[], EquilibriumLayer]] = {
    "ReLU": lambda: layer_of(lipschitz=1.0),
    "feedthrough": lambda: layer_of(1, hidden=5, feedthrough=True),
    "leaky": lambda: layer_of(2, activation=nn.LeakyReLU(0.3)),
    "clipped": lambda: layer_of(3, activation=nn.Hardtanh()),
    "curved": lambda: layer_of(4, hidden=6, activation=nn.Softplus()),
    "sigmoid": lambda: layer_of(5, hidden=6, activation=nn.Sigmoid()),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 3e-3), (torch.float32, 3e-2)])
def test_no_error_is_larger_than_certified(kind: str, precision: torch.dtype, tolerance: float) -> None:
    """On ways with jumps; the bounds are within a few times the largest errors."""
    layer, largest = LAYERS[kind]().to(precision), 0.0
    tracker = Tracker(layer, tolerance=tolerance, dtype=precision)
    for x in walk(30, 5, stride=tolerance / 3, jump=12):
        frame = tracker(x.to(precision))
        of_z, of_y = ratios(layer, x.to(precision), frame)
        assert max(of_z, of_y) <= 1 and bool((frame.error <= tolerance).all())
        largest = max(largest, of_z)
    assert largest > 0.1


def test_warm_starts_take_few_steps_and_jumps_take_more() -> None:
    layer = layer_of(lipschitz=1.0)
    tracker = Tracker(layer, tolerance=1e-3)
    cold, slow, far = [], [], []
    for number, x in enumerate(walk(60, 1, stride=4e-4, jump=20)):
        steps = int(tracker(x).steps)
        (cold if number == 0 else far if number % 20 == 0 else slow).append(steps)
    assert max(slow) <= 4 and min(far) > max(slow) and cold[0] > 3 * max(slow)
    assert len(far) == 2


def test_steps_and_errors_of_a_stream_do_not_depend_on_the_others() -> None:
    layer = layer_of()
    together, alone = Tracker(layer), [Tracker(layer) for _ in range(3)]
    for x in walk(12, 3, stride=2e-3):
        x = x * torch.tensor([[0.01], [1.0], [5.0]], dtype=F64)  # which move at different speeds
        frame = together(x)
        for row, tracker in enumerate(alone):
            own = tracker(x[row])
            assert own.steps.shape == () and int(own.steps) == int(frame.steps[row])
            assert (own.output - frame.output[row]).abs().max() <= 1e-12
            assert float((own.error - frame.error[row]).abs()) <= 1e-9
    assert len(set(frame.steps.tolist())) > 1


def test_a_declared_bound_on_the_motion_fixes_the_number_of_steps() -> None:
    layer = layer_of()
    tracker = Tracker(layer, tolerance=1e-3, step_bound=1.1e-2)
    frames = [(x, tracker(x)) for x in walk(30, 2, stride=1e-2)]
    assert len({steps for _, frame in frames[1:] for steps in frame.steps.tolist()}) == 1
    for x, frame in frames:
        assert max(ratios(layer, x, frame)) <= 1 and bool((frame.error <= 1e-3).all())
    far = frames[-1][0] + 5.0  # farther than declared
    frame = tracker(far)
    assert bool((frame.error > 1e-3).all()) and max(ratios(layer, far, frame)) <= 1
    for _ in range(40):
        frame = tracker(far)
    assert bool((frame.error <= 1e-3).all())


def test_rounding_is_part_of_the_error() -> None:
    """At rest nothing else is left; without it the bound of float32 steps is too small."""
    layer = layer_of(dtype=torch.float32)
    x = next(walk(1, 4, stride=1.0)).float()
    module = FixedTracking(layer, steps=80, dtype=torch.float32)
    state = module.start(x)
    for _ in range(2):
        found = module(x, state)
        (of_z, of_y), state = distances(layer, x, found.z, found.y), found.state
        assert bool((of_z <= found.z_error).all()) and bool((of_y <= found.y_error).all())
    module.rounding = replace(module.rounding, state=0.0, input=0.0, constant=0.0, reading=0.0, out_state=0.0)
    found = module(x, module(x, module.start(x)).state)
    assert bool((distances(layer, x, found.z, found.y)[0] > found.z_error).any())
    with pytest.raises(PreconditionError, match=r"\btolerance\b"):
        Tracker(layer, tolerance=1e-7, dtype=torch.float32)(x)
    tracker = Tracker(layer, tolerance=3e-2, dtype=torch.float32)
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(PreconditionError, match=r"\bfloat32\b"):
            tracker(x)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert bool((tracker(x).error <= 3e-2).all())


def test_new_weights_get_a_new_bound() -> None:
    layer = layer_of()
    tracker, x = Tracker(layer), next(walk(1, 2, stride=1.0))
    before = tracker(x)
    known = tracker.certificate
    with torch.no_grad():
        layer.parameterization.bias.add_(0.5)
    assert max(ratios(layer, x, tracker(x))) > 1  # the tracker has copied the old ones
    tracker.refresh()
    assert tracker.certificate is known and max(ratios(layer, x, tracker(x))) <= 1
    with torch.no_grad():
        layer.parameterization.U.mul_(1.1)
    tracker.refresh()
    assert tracker.certificate is not known and tracker.certificate.speed > known.speed
    after = tracker(x)
    assert max(ratios(layer, x, after)) <= 1 and bool((after.error <= 1e-3).all())
    tracker.reset()
    assert bool((tracker(x).steps >= after.steps).all()) and bool((before.steps > 0).all())


def test_images_are_inputs_and_a_stream_is_any_iterable() -> None:
    torch.manual_seed(0)
    layer = LBENConv2d(1, 2, 3, image=(4, 3), dtype=F64).requires_grad_(False)
    images = torch.randn(2, 1, 4, 3, dtype=F64)
    stream = (images + 1e-3 * frame for frame in range(5))
    for frame, found in enumerate(track_inputs(layer, stream, tolerance=1e-4)):
        z, y = exact(layer, images + 1e-3 * frame)
        assert (found.output - y).norm(dim=-1).le(found.output_error).all()
        assert found.equilibrium.shape == z.shape
    assert frame == 4


def test_what_cannot_be_tracked_is_refused_and_changes_nothing() -> None:
    layer = layer_of()
    tracker, x = Tracker(layer), next(walk(1, 2, stride=1.0))
    first = tracker(x)
    for wrong in (x * float("nan"), x.float(), x[:1], x[:, :5], x.long(), x / 0):
        with pytest.raises(InputError, match=r"\bx\b"):
            tracker(wrong)
    assert int(tracker(x).steps.max()) == 0 and bool((first.steps > 0).all())
    for options in ({"tolerance": 0.0}, {"tolerance": float("nan")}, {"step_bound": -1.0}, {"dtype": torch.bfloat16}):
        with pytest.raises(InputError):
            Tracker(layer, **options)  # type: ignore[arg-type]
    for options in ({}, {"steps": 0}, {"steps": 2, "step_bound": 1.0}, {"tolerance": 1e-3}, {"step_bound": 1.0}):
        with pytest.raises(InputError):
            FixedTracking(layer, **options)
    with pytest.raises(InputError, match=r"\blayer\b"):
        Tracker(nn.Linear(6, 3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"\bstream\b"):
        track_inputs(layer, 3)  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match=r"\btracking\b"):
        Tracker(EquilibriumLayer(Unconstrained(6, 8, 3)))
    with pytest.raises(PreconditionError, match=r"\bFixedTracking\b"):
        FixedTracking(layer, steps=2).float()(x, FixedTracking(layer, steps=2).start(x))


@pytest.mark.filterwarnings("ignore")  # torch's own, of its own tracing
def test_a_frame_is_one_graph() -> None:
    """Compiled without a break and exported for any number of streams: outputs, errors and states as without."""
    torch._dynamo.reset()
    layer = layer_of(hidden=5, feedthrough=True)
    module = FixedTracking(layer, tolerance=0.3, step_bound=0.1)
    first, second = walk(2, 3, stride=0.1)
    state = module(first, module.start(first)).state
    streams = torch.export.Dim("streams", min=2)
    shapes = {"x": {0: streams}, "state": type(state)(*[{0: streams}] * 3)}
    exported = torch.export.export(module, (second, state), dynamic_shapes=shapes).module()
    for run in (torch.compile(module, fullgraph=True, backend="aot_eager"), exported):
        for x, before in ((second, state), (second[:2], type(state)(*(t[:2] for t in state)))):
            for ours, theirs in zip(flat(module(x, before)), flat(run(x, before)), strict=True):
                assert (ours - theirs).abs().max() <= 1e-12


def flat(output: tuple[object, ...]) -> list[Tensor]:
    return [t for part in output for t in (flat(part) if isinstance(part, tuple) else [part])]  # type: ignore[misc]
