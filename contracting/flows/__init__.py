"""Flows s' = f(t, s): any field, and the flows whose steady state is an equilibrium."""
