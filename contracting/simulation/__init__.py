"""Trajectories and what is measured on them: decay, tracking, carried balls, sampled rates, energies."""
