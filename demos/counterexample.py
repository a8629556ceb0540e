"""Condition 1 holds, yet two trajectories diverge under one input: a table and figures (--help tells the options)."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["counterexample", *sys.argv[1:]]))
