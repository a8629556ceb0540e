r"""How far an input may be moved before its class changes: certified from below, attacked from above, in ℓ2 and ℓ∞.

Certified: the class y of x is the same for every x' with ‖x' − x‖₂ < minⱼ (y_y − y_j)(x)/γ_yj, where γ_yj bounds the
Lipschitz constant of y_y − y_j; with one constant γ of the whole map, γ_yj = √2 γ. Attacked: perturbations by foolbox,
each verified here by a solve of its own. No attack may succeed inside a certified radius: ``attacks_inside``.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from contracting import checks
from contracting.display import Displayed
from contracting.errors import InputError
from equilibrium.local.margins import batches, checked_labels, checked_rows
from equilibrium.training.modes import evaluating

_BATCH = 1000  # inputs per call of the model


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Perturbations(Displayed):
    """The smallest verified perturbation of each input.

    Attributes:
        inputs: the perturbed inputs, (count, in); the input itself where no attack was found.
        sizes: ‖x' − x‖₂, (count,): 0 where x is misclassified, ∞ where nothing that was found fools the model.
    """

    inputs: Tensor
    sizes: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FastGradient:
    """What the fast gradient method does at each of its sizes.

    Attributes:
        allowed: ε, (k,).
        fooled: whether each input is misclassified, (k, count).
        sizes: ‖x' − x‖₂ after clipping, (k, count), at most ε.
    """

    allowed: Tensor
    fooled: Tensor
    sizes: Tensor

    @property
    def error_percent(self) -> Tensor:
        """Misclassified inputs in percent at each size, (k,)."""
        return 100 * self.fooled.double().mean(-1)

    @property
    def smallest(self) -> Tensor:
        """The smallest perturbation that fools each input, ∞ where none does, (count,)."""
        return torch.where(self.fooled, self.sizes, math.inf).amin(0)


def fast_gradient(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    allowed: Sequence[float],
    *,
    bounds: tuple[float, float],
    temperature: float = 1.0,
    batch_size: int = _BATCH,
) -> FastGradient:
    """x' = clip(x + ε∇/‖∇‖₂), ∇ the gradient of the cross-entropy in x: foolbox's L2FastGradientAttack at all sizes.

    The direction does not depend on ε, so it is asked for once, and brought to length one where foolbox's is shorter.
    In float32 confident rows have no gradient left; use float64.

    Args:
        model: (batch, in) -> (batch, classes), differentiable.
        inputs: (count, in).
        labels: (count,).
        allowed: the sizes ε.
        bounds: smallest and largest value of an input (black and white), to which x' is clipped.
        temperature: of the cross-entropy; it changes the direction, because classes are weighted by their probability.
        batch_size: inputs per call of the model.

    Raises:
        InputError: on sizes or labels that do not fit, no size at all, or inputs outside the bounds.
        MissingExtraError: without foolbox, the extra ``attacks``.
    """
    checked_rows(inputs, labels)
    if not isinstance(allowed, Sequence) or not allowed:
        raise InputError(f"allowed must be a list of at least one size, such as [0.5, 1.0], got {allowed!r}")
    for size in allowed:
        checks.number("allowed", size, low=0, high=math.inf, high_open=True)
    low, high = _checked_bounds(inputs, bounds)
    checked_labels(labels, _outputs(model, inputs[:1]).shape[-1])
    foolbox = _foolbox()
    attack = foolbox.attacks.L2FastGradientAttack()
    fooled, sizes = [], []
    for x, y in batches(inputs, labels, batch_size):
        with _attacked(model, temperature) as call:
            # without clipping, x' − x is the direction; foolbox divides by max(‖∇‖, 1e-12), and so it falls short of
            # length one where the class is beyond doubt and the gradient tiny
            direction = attack.run(_wrapped(foolbox, call, (-math.inf, math.inf)), x, y, epsilon=1.0) - x
            direction = torch.nn.functional.normalize(direction, dim=-1, eps=torch.finfo(x.dtype).tiny)
            moved = [(x + size * direction).clamp(low, high) for size in allowed]
            fooled.append(torch.stack([_classes(call, rows) != y for rows in moved]))
        sizes.append(torch.stack([_distance(rows, x) for rows in moved]))
    return FastGradient(
        allowed=torch.tensor(list(allowed), dtype=torch.float64),
        fooled=torch.cat(fooled, 1),
        sizes=torch.cat(sizes, 1),
    )


def smallest_perturbation(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    bounds: tuple[float, float],
    verify: nn.Module | None = None,
    temperature: float | None = None,
    steps: int = 40,
    seed: int = 0,
    batch_size: int = _BATCH,
    on_batch: Callable[[], None] | None = None,
) -> Perturbations:
    """The smallest perturbation that a strong attack finds: foolbox's DDNAttack (arXiv 1811.09600).

    It follows the gradient for ``steps`` steps on a sphere that shrinks while the class is wrong and grows while it is
    right; of all points on the way the closest misclassified one counts.

    Args:
        model: (batch, in) -> (batch, classes), differentiable.
        inputs: (count, in).
        labels: (count,).
        bounds: smallest and largest value of an input, to which x' is clipped.
        verify: the model that must be fooled; None takes ``model``. An attack on a float32 copy is faster.
        temperature: of the cross-entropy; None takes a fifth of the median lead over the second class, at which no
            gradient is too small to be followed, and the nearest class counts most.
        steps: gradients per input.
        seed: of the directions that replace a gradient of zero; these alone depend on the place of a row in its batch.
        batch_size: inputs per call of the model; sizes do not depend on it.
        on_batch: called after each batch.

    Raises:
        InputError: on sizes or labels that do not fit, a model with a single class, or inputs outside the bounds.
        MissingExtraError: without foolbox, the extra ``attacks``.
    """
    checked_rows(inputs, labels)
    checks.whole_number("steps", steps)
    checks.seed("seed", seed)
    _checked_bounds(inputs, bounds)
    kind = _kind(model, inputs)
    classes = _outputs(model, inputs[:1].to(kind)).shape[-1]
    checked_labels(labels, classes)
    if classes < 2:
        raise InputError("model must have at least two classes, or nothing can fool it")
    foolbox = _foolbox()
    # from 3 the radius reaches 0.1 and 90 within 40 steps
    attack = foolbox.attacks.DDNAttack(steps=steps, init_epsilon=3.0, gamma=0.1)
    judge = model if verify is None else verify
    if temperature is None:
        temperature = _followed(model, inputs.to(kind), batch_size)
    around = _widened(inputs.to(kind), bounds)
    found, sizes = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for x, y in batches(inputs, labels, batch_size):
            start = x.to(kind)
            with _attacked(model, temperature) as call:
                moved = attack.run(_wrapped(foolbox, call, around), start, y).to(x)
            moved = moved.clamp(*bounds)
            with _attacked(judge, 1.0) as call:
                wrong, fooled = _classes(call, x) != y, _classes(call, moved) != y
            moved = torch.where((fooled & ~wrong)[:, None], moved, x)
            size = torch.where(fooled, _distance(moved, x), math.inf)
            found.append(moved)
            sizes.append(torch.where(wrong, 0.0, size))
            if on_batch is not None:
                on_batch()
    return Perturbations(inputs=torch.cat(found), sizes=torch.cat(sizes))


def fooled_in_boxes(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    radius: float,
    *,
    bounds: tuple[float, float],
    steps: int = 40,
    restarts: int = 2,
    seed: int = 0,
    batch_size: int = _BATCH,
) -> Perturbations:
    """Inputs of a box ‖x' − x‖_∞ ≤ radius that fool the model: projected gradient (arXiv 1706.06083), by foolbox.

    It begins at the input itself, and again at random points of the box for those rows that are not fooled yet. The
    cross-entropy is tempered as for ``smallest_perturbation``.

    Args:
        model: (batch, in) -> (batch, classes), differentiable; float64, so that boxes are not left by rounding.
        inputs: (count, in).
        labels: (count,).
        radius: > 0.
        bounds: smallest and largest value of an input, to which x' is clipped.
        steps: gradients per start.
        restarts: from random points.
        seed: of these points.
        batch_size: inputs per call of the model.

    Returns:
        The perturbed inputs, and their distance in ℓ∞: 0 where x is misclassified, ∞ where nothing was found.

    Raises:
        InputError: on sizes or labels that do not fit, or inputs outside the bounds.
        MissingExtraError: without foolbox, the extra ``attacks``.
    """
    checked_rows(inputs, labels)
    checks.number("radius", radius, low=0, low_open=True, high=math.inf, high_open=True)
    checks.whole_number("steps", steps)
    checks.whole_number("restarts", restarts, low=0)
    checks.seed("seed", seed)
    low, high = _checked_bounds(inputs, bounds)
    checked_labels(labels, _outputs(model, inputs[:1]).shape[-1])
    foolbox, temperature = _foolbox(), _followed(model, inputs, batch_size)
    found, sizes = inputs.clone(), torch.full((len(inputs),), math.inf, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for start in range(restarts + 1):
            # so that 40 steps cross the box several times
            attack = foolbox.attacks.LinfPGD(rel_stepsize=4 / steps, steps=steps, random_start=start > 0)
            left = torch.nonzero(torch.isinf(sizes)).flatten()
            for rows in torch.split(left, batch_size) if len(left) else ():
                x, y = inputs[rows], labels[rows]
                with _attacked(model, temperature) as call:
                    wrong = _classes(call, x) != y
                    moved = attack.run(_wrapped(foolbox, call, (low, high)), x, y, epsilon=radius)
                    moved = torch.minimum(torch.maximum(moved, x - radius), x + radius).clamp(low, high)
                    fooled = _classes(call, moved) != y
                moved = torch.where((fooled & ~wrong)[:, None], moved, x)
                size = torch.where(fooled, (moved - x).abs().amax(-1).double(), math.inf)
                found[rows], sizes[rows] = moved, torch.where(wrong, 0.0, size)
    return Perturbations(inputs=found, sizes=sizes)


def _followed(model: nn.Module, inputs: Tensor, batch_size: int) -> float:
    """A temperature at which no gradient is too small to be followed: a fifth of the median lead."""
    leads = [_leads(model, x) for x in torch.split(inputs, batch_size)]
    return float(torch.cat(leads).median()) / 5 or 1.0


def _foolbox() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # foolbox 3.3.4 imports scipy by old names
        return checks.extra("foolbox", "attacks", "attacks")


def _wrapped(foolbox: ModuleType, call: nn.Module, bounds: tuple[float, float]) -> Any:
    return foolbox.PyTorchModel(call, bounds=bounds, device=_kind(call, torch.empty(())).device)


class _Tempered(nn.Module):
    """A model with its outputs divided by a temperature, as foolbox takes it."""

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model = model
        self.temperature = checks.number("temperature", temperature, low=0, low_open=True)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.model(x)
        return outputs / self.temperature


@contextlib.contextmanager
def _attacked(model: nn.Module, temperature: float) -> Iterator[nn.Module]:
    """The model in evaluation mode, its parameters without gradient, for as long as the context lasts."""
    tempered = _Tempered(model, temperature)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(tempered):
        try:
            for parameter in learnt:
                parameter.requires_grad_(False)
            yield tempered
        finally:
            for parameter in learnt:
                parameter.requires_grad_(True)


def _kind(model: nn.Module, otherwise: Tensor) -> Tensor:
    """A tensor of the precision and on the device of a model; a model without any takes what it is given."""
    return next(itertools.chain(model.parameters(), model.buffers()), otherwise)


@torch.no_grad()
def _classes(call: nn.Module, inputs: Tensor) -> Tensor:
    outputs: Tensor = call(inputs.to(_kind(call, inputs)))
    return outputs.argmax(-1)


def _leads(model: nn.Module, inputs: Tensor) -> Tensor:
    """The lead of the largest output over the second, (batch,)."""
    top = _outputs(model, inputs).topk(2, -1).values
    return top[:, 0] - top[:, 1]


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    with evaluating(model):
        outputs: Tensor = model(inputs)
    return outputs


def _distance(moved: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(moved.double() - x.double(), dim=-1)


def _widened(x: Tensor, bounds: tuple[float, float]) -> tuple[float, float]:
    """The bounds as the dtype of x rounds them: foolbox refuses an input outside by one rounding."""
    low, high = torch.tensor(bounds, dtype=x.dtype).tolist()
    return min(low, float(x.min())), max(high, float(x.max()))


def _checked_bounds(inputs: Tensor, bounds: tuple[float, float]) -> tuple[float, float]:
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise InputError(f"bounds must be the smallest and the largest value of an input, (low, high), got {bounds!r}")
    low, high = (checks.number("bounds", bound) for bound in bounds)
    if not (low < high and low <= float(inputs.min()) and float(inputs.max()) <= high):
        raise InputError(
            f"bounds must enclose the inputs, which reach from {float(inputs.min()):g} to {float(inputs.max()):g}, got "
            f"({low:g}, {high:g})"
        )
    return low, high
