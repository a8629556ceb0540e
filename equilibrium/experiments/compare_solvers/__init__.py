"""The comparison of solvers: its study, its figures and its command."""
