"""Figures of equilibrium networks: the comparison of solvers, and what a certified contraction rate costs."""

from equilibrium.plots.comparison import (
    FIGURES,
    PANELS,
    SHOWN,
    draw_all,
    plot_every_solver,
    plot_predicted_iterations,
    plot_residual_against_iteration,
    plot_residual_against_time,
    plot_work_precision,
)
from equilibrium.plots.contraction_cost import draw_contraction_cost

__all__ = [
    "FIGURES",
    "PANELS",
    "SHOWN",
    "draw_all",
    "draw_contraction_cost",
    "plot_every_solver",
    "plot_predicted_iterations",
    "plot_residual_against_iteration",
    "plot_residual_against_time",
    "plot_work_precision",
]
