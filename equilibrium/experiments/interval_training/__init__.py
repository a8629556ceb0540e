"""Certified accuracy in boxes of pixels, for networks trained as usual and trained with the interval loss."""
