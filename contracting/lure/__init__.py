"""Lur'e systems: a linear system with activations in its feedback, the form of every field that is proved about."""
