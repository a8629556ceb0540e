"""Every flow of a trained network: certified ≤ true ≤ bound, in one table and figures (--help tells the options)."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["contraction-rates", *sys.argv[1:]]))
