"""Contract suites, one for each extension point: subclass one, bring its factories, and inherit its tests.

A suite is a plain class whose ``test_…`` methods need no argument and raise AssertionError, with a sentence, where a
promise is broken. It imports no test framework: pytest runs a subclass that is named ``Test…``, and ``unittest`` one
that also derives from ``unittest.TestCase``.
"""
