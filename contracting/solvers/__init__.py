"""Every solver that is no ODE integrator: splittings, accelerations, Newton methods, and the default."""
