"""Contract suites of networks, as those in ``contracting.contracts``: subclass one, bring its factory, inherit."""
