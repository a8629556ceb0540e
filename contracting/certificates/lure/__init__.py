"""Certified rates, gains and passivity of Lur'e systems: finders, one checker, and what they are compared with."""
