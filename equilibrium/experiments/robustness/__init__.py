"""The robustness experiment of arXiv 2010.01732, section 6: models, study, figures and command."""
