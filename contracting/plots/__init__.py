"""Figures of contraction: each takes data, draws on the axes it is given or on new ones, and returns them.

What is proved is a blue dashed line, what was only sampled or claimed a purple dash-dotted one, what bounds every proof
from above a vermilion dotted one; grey was simulated. The words follow from the type of the evidence that is passed.
"""

from contracting.plots.balls import plot_shrinking_balls
from contracting.plots.energy import plot_energy_contours, plot_energy_descent
from contracting.plots.phase import animate_phase_portrait, plot_phase_portrait
from contracting.plots.rates import plot_rate_against_step, plot_rates_against_skewness
from contracting.plots.regions import plot_rate_against_radius
from contracting.plots.spectra import plot_numerical_range, plot_spectra
from contracting.plots.style import FULL_WIDTH, HALF_WIDTH, new_axes
from contracting.plots.trajectories import plot_distance, plot_tracking

__all__ = [
    "FULL_WIDTH", "HALF_WIDTH", "animate_phase_portrait", "new_axes", "plot_distance", "plot_energy_contours",
    "plot_energy_descent", "plot_numerical_range", "plot_phase_portrait", "plot_rate_against_radius",
    "plot_rate_against_step", "plot_rates_against_skewness", "plot_shrinking_balls", "plot_spectra",
    "plot_tracking",
]  # fmt: skip
