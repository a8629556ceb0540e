"""Modules with parameters to learn, whose certificates hold for every value of these."""
