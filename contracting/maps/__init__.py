"""Linear maps z ↦ Wz: the base class, dense and convolutional weights, and what is known of A = I − W."""
