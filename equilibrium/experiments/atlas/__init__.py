"""An atlas of known systems: each with the ball over which contraction is proved."""
