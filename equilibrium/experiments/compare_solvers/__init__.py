"""The comparison of solvers: its study, its table, its figures and its command."""
