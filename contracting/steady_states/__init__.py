"""Steady states f(s) = 0 of any field: found by every method that needs no weight, and differentiated twice."""
