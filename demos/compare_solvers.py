"""Find the same equilibria with every solver: a table, figures and results.json (--help tells the options)."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare-solvers", *sys.argv[1:]]))
