"""Handwritten motions learnt by a contracting neural ODE: models, study, figures and command."""
