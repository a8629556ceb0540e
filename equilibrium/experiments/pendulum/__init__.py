"""A pendulum identified from irregular noisy samples, by a contracting neural ODE and by one that is free."""
