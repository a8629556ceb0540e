"""Contract suites of networks, as those in ``contracting.contracts``: subclass one, bring its factory, inherit."""

from equilibrium.contracts.parameterization import ParameterizationContract

__all__ = ["ParameterizationContract"]
