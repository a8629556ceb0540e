"""Training lowers the loss, repeats itself exactly, leaves the world as it was, and stops with one clear sentence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from contracting.errors import InputError
from equilibrium import LBEN
from equilibrium.training.data import Samples, digits, subset
from equilibrium.training.loop import error_percent, shifted, train
from equilibrium.training.losses import CrossEntropy
from equilibrium.training.records import TrainingError


@pytest.fixture(scope="module")
def images():
    return subset(digits(), train=300, test=100)


def new_layer(seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LBEN(64, 12, 10, lipschitz=1.0, **options)


def without_times(record):
    return [replace(epoch, seconds=0.0) for epoch in record.epochs]


def test_training_lowers_loss_and_error(images):
    layer = new_layer()
    before = error_percent(layer, images.test_inputs, images.test_labels)
    record = train(layer, images, epochs=3, batch_size=32)
    losses = [epoch.loss for epoch in record.epochs]
    assert losses == sorted(losses, reverse=True)
    assert record.test_error < before / 2
    assert record.test_error == error_percent(layer, images.test_inputs, images.test_labels)
    assert record.seconds == sum(epoch.seconds for epoch in record.epochs) > 0
    assert all(epoch.solver_steps > 0 for epoch in record.epochs)
    assert (record.dataset, record.batch_size, record.seed) == ("digits", 32, 0)


def test_seed_decides_everything(images):
    first, second, other = new_layer(), new_layer(), new_layer()
    one = train(first, images, epochs=1, seed=3)
    assert without_times(train(second, images, epochs=1, seed=3)) == without_times(one)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert train(other, images, epochs=1, seed=4).epochs[0].loss != one.epochs[0].loss


def test_global_generator_and_data_are_left_alone(images):
    state, inputs = torch.get_rng_state(), images.train_inputs.clone()
    train(new_layer(), images, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images.train_inputs, inputs)


@pytest.mark.parametrize("failure", ["data", "rate", "readout"])
def test_loss_that_is_not_finite_is_one_sentence(images, failure):
    rate = 1e30 if failure == "rate" else 0.01
    if failure == "data":
        spoilt = images.train_inputs.clone()
        spoilt[17, 5] = float("nan")
        images = replace(images, train_inputs=spoilt)
    layer = new_layer()
    if failure == "readout":  # which no solver looks at
        nn.init.constant_(layer.parameterization.output_bias, float("inf"))
    with pytest.raises(TrainingError, match=r"epoch 1 of 2.*learning_rate") as error:
        train(layer, images, epochs=2, learning_rate=rate)
    assert "\n" not in str(error.value)
    assert ("the loss is nan" in str(error.value)) == (failure == "readout")


@pytest.mark.parametrize("rate", [1e2, 1e6])
def test_divergence_in_the_last_step_of_an_epoch_is_the_same_sentence(images, rate):
    """The weights overflow after the only step, so that it is the test that cannot be made."""
    few = subset(images, train=64)
    with pytest.raises(TrainingError, match=r"^training stopped in epoch 1 of 1: .*smaller learning_rate"):
        train(new_layer(), few, epochs=1, learning_rate=rate)
    train(new_layer(), few, epochs=1, learning_rate=0.03)


def test_weights_that_stop_being_finite_in_the_last_step_are_told(images):
    few, model = subset(images, train=64), nn.Linear(64, 10)
    model.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match="epoch 1 of 1: weight has .* NaN"):
        train(model, few, epochs=1)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "learning_rate": 1e38}, "learning_rate"),
        ({"epochs": 1, "shift": 8}, "shift must be smaller than the images, 8 × 8 pixels, got 8"),
        ({"epochs": 1, "batch_size": 0}, "batch_size"),
        ({"epochs": 1, "learning_rate": -1.0}, "learning_rate"),
        ({"epochs": 1, "seed": -1}, "seed"),
        ({"epochs": 1, "seed": 2**64}, "seed"),
    ],
)
def test_wrong_settings_are_named(images, options, named):
    with pytest.raises(InputError, match=named):
        train(new_layer(), images, **options)
    with pytest.raises(InputError, match="train_inputs"):
        train(LBEN(5, 4, 10), images, epochs=1)
    with pytest.raises(TypeError):
        train(new_layer(), images, epoch=1)


def test_error_percent_does_not_depend_on_the_batches():
    inputs = torch.eye(4)[[0, 1, 2, 3, 0]]
    labels = torch.tensor([0, 1, 2, 0, 1])
    for batch_size in (1, 2, 5, 100):
        assert error_percent(nn.Identity(), inputs, labels, batch_size=batch_size) == pytest.approx(40.0)
    with pytest.raises(InputError, match="labels"):
        error_percent(nn.Identity(), inputs, labels[:3])
    with pytest.raises(InputError, match="inputs"):
        error_percent(nn.Identity(), inputs[:0], labels[:0])


@pytest.mark.slow
def test_out_of_the_box_accuracy_on_digits():
    layer = LBEN(64, 64, 10, lipschitz=1.0)
    record = train(layer, digits(), epochs=8)
    assert record.test_error <= 4
    assert record.epochs[-1].train_error <= 4


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("moment", [1, 10, 14, 29])
def test_training_that_was_interrupted_ends_with_the_same_bits(images, tmp_path, moment):
    options = {"epochs": 3, "batch_size": 32, "seed": 2, "loss": CrossEntropy(temperature=0.5), "noise": 0.2}
    whole = new_layer()
    record = train(whole, images, **options)
    steps = 0

    def interrupt(*_):
        nonlocal steps
        steps += 1
        if steps == moment:
            raise Interrupted

    begun = new_layer()
    hook = begun.register_forward_hook(interrupt)
    with pytest.raises(Interrupted):
        train(begun, images, checkpoint=tmp_path / "training.pt", **options)
    hook.remove()
    again = new_layer(seed=9)  # of which nothing may be left, unless no epoch was finished
    again = new_layer() if moment <= 10 else again
    continued = train(again, images, checkpoint=tmp_path / "training.pt", **options)
    assert without_times(continued) == without_times(record)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    finished = new_layer(seed=5)
    assert train(finished, images, checkpoint=tmp_path / "training.pt", **options) == continued
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), finished.parameters(), strict=True))


def test_checkpoint_of_another_training_is_refused_by_name(images, tmp_path):
    path = tmp_path / "training.pt"
    train(new_layer(), images, epochs=1, checkpoint=path)
    with pytest.raises(InputError, match=r"learning_rate = 0.03, now 0.02"):
        train(new_layer(), images, epochs=1, learning_rate=0.02, checkpoint=path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="remove it"):
        train(new_layer(), images, epochs=1, checkpoint=path)


def test_temperature_is_the_same_as_a_scaled_readout(images):
    def first_loss(model, **options):
        return train(model, images, epochs=1, batch_size=300, **options).epochs[0].loss

    scaled = new_layer()
    with torch.no_grad():
        logits = scaled(images.train_inputs)
        expected = torch.nn.functional.cross_entropy(logits / 0.25, images.train_labels)
    assert first_loss(new_layer(), loss=CrossEntropy(temperature=0.25)) == pytest.approx(float(expected), rel=1e-4)
    assert first_loss(new_layer()) != pytest.approx(float(expected), rel=1e-2)


def test_any_classifier_can_be_trained(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    record = train(model, images, epochs=3, learning_rate=0.01)
    assert record.epochs[-1].loss < record.epochs[0].loss
    assert record.epochs[-1].solver_steps is None
    assert record.test_error == error_percent(model, images.test_inputs, images.test_labels)


def test_shifts_move_images_by_whole_pixels_and_fill_with_background(images):
    generator = torch.Generator().manual_seed(0)
    inputs = images.train_inputs[:64]
    background = float(images.normalization.normalize(torch.zeros(())))
    moved = shifted(inputs, images, 1, generator).reshape(64, 8, 8)
    seen = set()
    for before, after in zip(inputs.reshape(64, 8, 8), moved, strict=True):
        padded = torch.nn.functional.pad(before, [1] * 4, value=background)
        fits = [(a, b) for a in range(3) for b in range(3) if torch.allclose(padded[a : a + 8, b : b + 8], after)]
        assert fits
        seen |= set(fits)
    assert len(seen) == 9
    assert torch.equal(shifted(inputs, images, 0, generator), inputs)


def test_shifts_are_drawn_anew_and_repeat_with_the_seed(images):
    records = [train(new_layer(), images, epochs=1, batch_size=64, shift=shift) for shift in (0, 1, 1, 7)]
    assert without_times(records[1]) == without_times(records[2]) != without_times(records[0])
    with pytest.raises(InputError, match="shift"):
        train(new_layer(), images, epochs=1, shift=-1)


def test_a_checkpoint_of_another_model_is_refused_even_where_its_tensors_fit(images, tmp_path):
    path = tmp_path / "training.pt"
    train(new_layer(), images, epochs=1, checkpoint=path)
    for other in (new_layer(epsilon=0.5), new_layer(activation=nn.Tanh())):
        with pytest.raises(InputError, match="belongs to a training with model"):
            train(other, images, epochs=1, checkpoint=path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LBEN(64, 12, 9), "each of the 10 classes, it has 9"),
        (LBEN(64, 12, 10, dtype=torch.float64), "train_inputs has dtype"),
        (nn.Linear(63, 10), "does not take the inputs"),
        (nn.Linear(64, 10).requires_grad_(False), "nothing to train"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_training(images, model, message):
    with pytest.raises(InputError, match=message):
        train(model, images, epochs=1)


def test_dropout_is_on_in_training_and_off_in_tests(images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    model.eval()
    seen = []
    model[3].register_forward_hook(lambda module, *_: seen.append(module.training))
    record = train(model, images, epochs=1, batch_size=100, learning_rate=0.01)
    assert seen[-4:] == [True, True, True, False]
    assert not any(module.training for module in model.modules())  # as it came
    model.train()
    statistics = model[1].running_mean.clone()
    assert record.test_error == error_percent(model, images.test_inputs, images.test_labels)
    assert torch.equal(model[1].running_mean, statistics) and model[3].training


def test_a_learnt_constant_is_no_other_model(images, tmp_path):
    layer = new_layer(learn_lipschitz=True)
    record = train(layer, images, epochs=1, checkpoint=tmp_path / "training.pt")
    assert float(layer.weights().lipschitz.detach()) != 1.0
    assert train(layer, images, epochs=1, checkpoint=tmp_path / "training.pt") == record


def curve(count=60, seed=0):
    x = torch.linspace(-2, 2, count)[:, None]
    return Samples(name="a curve", train_inputs=x, train_targets=torch.tanh(2 * x), test_inputs=x[::3] + 0.01,
                   test_targets=torch.tanh(2 * x[::3] + 0.02))  # fmt: skip


def regressor(seed=0):
    torch.manual_seed(seed)
    return LBEN(1, 8, 1)


def test_numbers_are_fitted_as_well_as_classes(tmp_path):
    layer, data = regressor(), curve()
    record = train(layer, data, epochs=40, batch_size=20, checkpoint=tmp_path / "training.pt")
    assert record.loss == "SquaredError()" and record.error == "root mean square error"
    with torch.no_grad():
        wrong = (layer(data.test_inputs) - data.test_targets).square().mean().sqrt()
    assert record.test_error == pytest.approx(float(wrong), rel=1e-3) and record.test_error < 0.1
    assert record.epochs[-1].solver_steps >= 1
    again = regressor(seed=1)
    assert train(again, data, epochs=40, batch_size=20, checkpoint=tmp_path / "training.pt") == record
    with pytest.raises(InputError, match="loss"):
        train(again, data, epochs=40, batch_size=20, loss=nn.functional.l1_loss, checkpoint=tmp_path / "training.pt")


def test_a_loss_of_ones_own_is_minimised_and_told():
    def quantile(outputs, targets):
        miss = targets - outputs
        return torch.maximum(0.9 * miss, -0.1 * miss).mean()

    layer, data = regressor(), replace(curve(), test_inputs=None, test_targets=None)
    noise = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    noisy = replace(data, train_targets=data.train_targets + noise)
    record = train(layer, noisy, epochs=60, loss=quantile)
    assert record.epochs[-1].train_error == pytest.approx(record.epochs[-1].loss, rel=1e-5)
    assert record.epochs[-1].test_error is None and math.isnan(record.test_error)
    with torch.no_grad():
        below = float((noisy.train_targets < layer(noisy.train_inputs)).double().mean())
    assert 0.8 < below < 1.0  # nine rows in ten, and of the mean only half


def test_a_callback_is_told_what_the_solves_measured(images):
    told, layer = [], new_layer()
    record = train(layer, images, epochs=2, batch_size=100, callback=told.append)
    assert [step.step for step in told] == list(range(1, len(told) + 1)) and {step.epoch for step in told} == {1, 2}
    for step in told:
        (solves,) = step.solves
        assert solves.forward.numbers()["failed_rows"] == 0 and solves.backward.numbers()["steps"] >= 1
    assert len({id(step.solves[0]) for step in told}) == len(told)  # each its own, not the last one's
    half = len(told) // 2
    weights = [min(100, len(images.train_labels) - 100 * k) for k in range(half)]
    mean = sum(w * step.loss for w, step in zip(weights, told[:half], strict=True)) / sum(weights)
    assert record.epochs[0].loss == pytest.approx(mean, rel=1e-5)
    plain = new_layer()
    train(plain, images, epochs=2, batch_size=100)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), plain.parameters(), strict=True))
    wrapped = []
    train(nn.Sequential(new_layer(), nn.Linear(10, 10)), images, epochs=1, batch_size=300, callback=wrapped.append)
    assert all(len(step.solves) == 1 for step in wrapped)
    linear = []
    train(nn.Linear(64, 10), images, epochs=1, callback=linear.append)
    assert all(step.solves == () for step in linear)


@pytest.mark.parametrize(
    ("change", "options", "named"),
    [
        ({"train_targets": torch.zeros(60, 2)}, {}, "targets"),
        ({"train_targets": torch.full((60,), 3)}, {}, "model"),
        ({"train_targets": torch.zeros(60, 1, dtype=torch.int64)}, {}, "classes"),
        ({}, {"loss": "mse"}, "loss"),
        ({}, {"loss": lambda y, t: (y - t).abs()}, "loss"),
        ({}, {"shift": 1}, "shift"),
        ({}, {"callback": 3}, "callback"),
    ],
)
def test_what_does_not_fit_is_named(change, options, named):
    with pytest.raises((InputError, TrainingError), match=named):
        train(regressor(), replace(curve(), **change), epochs=1, **options)


@pytest.mark.parametrize("change", [
    {"train_inputs": torch.zeros(60)}, {"train_inputs": torch.zeros(0, 1)}, {"train_targets": torch.zeros(3, 1)},
    {"test_inputs": None}, {"train_inputs": torch.zeros(60, 1, dtype=torch.int64)},
])  # fmt: skip
def test_samples_that_do_not_fit_are_named(change):
    with pytest.raises(InputError, match="inputs|targets"):
        replace(curve(), **change)


def test_a_temperature_must_be_positive():
    with pytest.raises(InputError, match="temperature"):
        CrossEntropy(temperature=0.0)
