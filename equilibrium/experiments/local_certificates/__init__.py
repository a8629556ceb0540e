"""Certified accuracy from local constants, beside one global constant and a strong attack."""
