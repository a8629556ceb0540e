"""What a certified contraction rate costs in test error, on digits: table, figure, results.json (--help: options)."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["contraction-cost", *sys.argv[1:]]))
