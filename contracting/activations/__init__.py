"""Activations as proximal operators: the base class, the catalogue, potentials, and neurons held at zero."""
