"""How closely contracting flows follow a moving equilibrium, beside the bound (--help tells the options)."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["tracking", *sys.argv[1:]]))
