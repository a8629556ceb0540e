"""Gradients of equilibria and of trajectories."""
