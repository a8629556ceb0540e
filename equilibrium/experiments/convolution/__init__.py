"""Equilibrium networks on images: figures and command."""
