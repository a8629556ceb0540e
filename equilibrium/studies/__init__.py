"""The experiments behind the figures and tables of the documentation; the command line runs them."""
