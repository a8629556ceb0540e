"""Contract suites, one for each extension point: subclass one, bring its factories, and inherit its tests.

No test framework is imported: pytest runs a subclass that is named ``Test…``, ``unittest`` one that derives from
``unittest.TestCase`` too, and ``TestMine().test_…()`` asks for a single promise.

>>> class TestMine(SolverContract):
...     def method(self):
...         return Mine()
"""

from contracting.contracts.activation import ActivationContract
from contracting.contracts.finder import FinderContract
from contracting.contracts.flow import FlowContract
from contracting.contracts.linear_map import LinearMapContract
from contracting.contracts.metric import MetricContract
from contracting.contracts.solver import SolverContract
from contracting.contracts.steady_state import SteadyStateContract

__all__ = [
    "ActivationContract", "FinderContract", "FlowContract", "LinearMapContract", "MetricContract", "SolverContract",
    "SteadyStateContract",
]  # fmt: skip
