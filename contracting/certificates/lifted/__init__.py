"""Norms that are roots of forms of higher degree, which go past the best quadratic metric."""
