"""The documented default: which method for which problem, decided before the solve and with the reason said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from contracting.activations.catalogue import Identity, Slope
from contracting.flows.network import FiringRate
from contracting.integrators.explicit import DormandPrince
from contracting.integrators.implicit import PseudoTransient
from contracting.loop.method import Family, Iteration, Method, in_graph
from contracting.loop.records import Stop
from contracting.problem import EquilibriumProblem, Problem
from contracting.solvers.newton import SemismoothNewton
from contracting.solvers.newton_krylov import NewtonKrylov
from contracting.solvers.relaxed import planned_steps
from contracting.solvers.relay import Relay
from contracting.solvers.splitting import PeacemanRachford
from contracting.solvers.tseng import Tseng

# Costs are counted in products of W with one row, 2n² operations each; measured on trained and random dense weights.
_SMALL = 500  # the largest n for which one n×n system per row and step is reasonable
_SYSTEM = 60  # steps per unit of n that all Newton steps of a row cost together: small systems run far below peak speed
_LINEAR_SHARE = 0.125  # of that where σ is linear, so that one step is exact
# The same where σ is curved: Newton's method takes more steps, and only some twenty of such a number of steps of
# Peaceman–Rachford evaluate σ (500 rows of n = 20 with tanh, float64: 50 times as fast at 10,000, half at 48,000).
_CURVED_SHARE = 20
_OVERHEAD = 6  # added to n: what a system costs however small it is
_LEAST_STEPS = 100  # of the chosen method before rows change to Newton's, however few are predicted
_KRYLOV = 2_000  # products that an inexact Newton solve may cost, over all its steps
_INVERSE_FREE_KRYLOV = 300  # the same for a moderate condition number, where splitting would be fast too

# made once: settings are checked whenever they are made
_SPLITTING, _NEWTON, _KRYLOV_NEWTON = PeacemanRachford(), SemismoothNewton(), NewtonKrylov()
_PRODUCTS = NewtonKrylov(flow=FiringRate())
_TRANSIENT, _FOLLOWING = PseudoTransient(), DormandPrince()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method, and one sentence that says why."""

    method: Method
    reason: str


@dataclass(frozen=True, kw_only=True)
class Automatic(Method):
    r"""Chooses a method from the size, the conditioning, the tolerance and the activation; nothing is tried or timed.

    The yardstick is the predicted number of Peaceman–Rachford steps, log(rtol)/log(factor), the factor being the exact
    one where W stays and n is moderate, and that of the slowest direction from cheap estimates where W changes in every
    step or n is large: eigendecompositions would then cost more than the solve. (``LinearMap.exactly_analysed`` says
    which; an estimate can cost steps, never correctness.) In this order:

    * a field f(s) in place of z = σ(Wz + q): PseudoTransient for n ≤ 500, else DormandPrince.
    * no certified metric: SemismoothNewton for n ≤ 500, else NewtonKrylov on the firing-rate flow. Neither needs one.
    * more predicted steps than Newton's method costs: SemismoothNewton for n ≤ 500, with 60(n + 6) steps as the limit,
      an eighth of it where σ is linear and 20 times it where σ is curved, which takes Newton more steps. (Of so many
      steps of Peaceman–Rachford some twenty evaluate σ, so that they cost no more than with ReLU.) NewtonKrylov for
      n > 500, from 2,000 steps.
    * fewer predicted steps than the resolvent costs (batch × steps < ``LinearMap.resolvent_products``, n for a dense
      matrix and little for a convolution): an inverse-free method, Tseng for small κ, else NewtonKrylov on the
      firing-rate flow. Inverses of up to 500 products cost little and serve every solve with the same weights.
    * otherwise PeacemanRachford, which is right for nearly every trained network.

    Rows that a splitting has not solved after the predicted number of steps, or half of ``Stop.patience``, go on with
    Newton's method, whose steps rounding errors disturb less and κ hardly at all. (Not where a graph is recorded.)

    DouglasRachford is never chosen: its factor is never smaller than that of Peaceman–Rachford. Predictions are for the
    worst case, so that a choice can be cautious: see ``choose`` for the reason, and name a method to overrule it.
    """

    family: ClassVar[Family] = Family.SPLITTING  # what it chooses most often

    def choose(self, problem: Problem, stop: Stop | None = None) -> Choice:
        """The method for this problem and tolerance, and the reason.

        Args:
            problem: what to solve.
            stop: when it counts as solved; None takes the defaults.
        """
        return _chosen(problem, (stop or Stop()).resolved(problem))[0]

    def chosen(self, problem: Problem, stop: Stop) -> Method:
        """The method that ``choose`` names, followed by Newton's for rows that it is not done with in time."""
        if not isinstance(problem, EquilibriumProblem):
            return _chosen(problem, stop)[0].method
        if in_graph(problem):
            return _relayed(problem, stop)
        linear, kind = problem.linear, type(problem.activation)
        batch = problem.batch if linear.resolvent_products > _SMALL else None  # elsewhere it makes no difference
        settings = kind, batch, stop.rtol, stop.patience, stop.max_steps
        if not linear.changing:
            return linear.remember("choice", (problem.metric, *settings), lambda: _relayed(problem, stop))
        # of W and of its transpose, in whose problem σ is linear, there is one choice each
        guided = linear.untransposed
        what = f"choice for {kind.__name__}"
        return guided.guide(what, (problem.metric, *settings), lambda: _relayed(problem, stop), key=settings)

    def bind(self, problem: Problem, stop: Stop) -> Iteration:
        """The iteration of the chosen method."""
        return self.chosen(problem, stop).bind(problem, stop)


def _chosen(problem: Problem, stop: Stop) -> tuple[Choice, float | None]:
    """The choice, and how many steps of Peaceman–Rachford are predicted where it is well-posed."""
    n = problem.size
    if not isinstance(problem, EquilibriumProblem):
        return _for_a_field(n), None
    step = problem.reflected_choice(usual=not problem.analysed_exactly)
    if step is None:
        reason = "no metric certifies Condition 1 for this weight, and Newton's method needs none"
        if n <= _SMALL:
            return Choice(method=_NEWTON, reason=f"{reason}; n = {n} allows one n×n system per row"), None
        return Choice(method=_PRODUCTS, reason=f"{reason}; n = {n} is too large for one system per row"), None
    steps = planned_steps(step.expected, max(stop.rtol or 0.0, 1e-15))
    assert steps is not None and step.expected is not None
    factor = f"{'proved' if step.factor is not None else 'estimated'} factor {step.expected:.4g}"
    predicted = f"Peaceman–Rachford's {factor} predicts {steps:.0f} steps to {stop.rtol:.0e}"
    newton = _newton(problem, steps, predicted)
    if newton is not None:
        return newton, steps
    cost = problem.linear.resolvent_products
    if cost > _SMALL and problem.batch * steps < cost:
        inverse_free = _inverse_free(problem, stop, steps)
        if inverse_free is not None:
            return inverse_free, steps
    return Choice(method=_SPLITTING, reason=f"{predicted}, one product each after one factorisation"), steps


def _relayed(problem: EquilibriumProblem, stop: Stop) -> Method:
    choice, predicted = _chosen(problem, stop)
    method = choice.method
    if isinstance(method, SemismoothNewton | NewtonKrylov) or in_graph(problem) or predicted is None:
        return method
    # Nearly every row takes fewer steps than are predicted for the worst case. Who needs more has mostly met the
    # rounding errors of the resolvent, long before the loop's patience is at an end.
    steps = max(_LEAST_STEPS, round(predicted))
    newton = _NEWTON if problem.size <= _SMALL else _PRODUCTS if isinstance(method, Tseng) else _KRYLOV_NEWTON
    return Relay(first=method, after=min(steps, -(-stop.patience // 2), stop.max_steps), then=newton)


def _for_a_field(n: int) -> Choice:
    if n <= _SMALL:
        reason = f"a field is followed until Newton's method takes over; n = {n} allows one n×n system per row"
        return Choice(method=_TRANSIENT, reason=reason)
    return Choice(method=_FOLLOWING, reason=f"a field is followed; n = {n} is too large for one n×n system per row")


def _newton(problem: EquilibriumProblem, steps: float, predicted: str) -> Choice | None:
    n = problem.size
    if n > _SMALL:
        if steps <= _KRYLOV:
            return None
        return Choice(method=_KRYLOV_NEWTON, reason=f"{predicted}, more than a Newton–Krylov solve costs")
    limit: float = _SYSTEM * (n + _OVERHEAD)
    why = ""
    if isinstance(problem.activation, Identity | Slope):
        limit, why = limit * _LINEAR_SHARE, ", where σ is linear and one step exact"
    elif not problem.activation.piecewise_linear:
        limit, why = limit * _CURVED_SHARE, ", where σ is curved"
    if steps <= limit:
        return None
    return Choice(method=_NEWTON, reason=f"{predicted}, more than Newton's method costs at n = {n}{why}")


def _inverse_free(problem: EquilibriumProblem, stop: Stop, steps: float) -> Choice | None:
    cost, batch = problem.linear.resolvent_products, problem.batch
    saved = f"{batch} rows in {steps:.0f} steps do not pay for a resolvent that costs {cost:.0f} products"
    assert problem.metric is not None
    estimates = problem.linear.estimates(problem.metric)
    assert estimates is not None
    tseng = planned_steps(
        1 - estimates.monotonicity / (2 * estimates.lipschitz), max(stop.rtol or 0.0, 1e-15)
    )
    assert tseng is not None
    if 2 * tseng <= _INVERSE_FREE_KRYLOV:
        return Choice(method=Tseng(), reason=f"{saved}; Tseng needs about {2 * tseng:.0f} products")
    if batch * _INVERSE_FREE_KRYLOV >= cost + batch * steps:
        return None
    return Choice(method=_PRODUCTS, reason=f"{saved}; Newton–Krylov needs products only")
