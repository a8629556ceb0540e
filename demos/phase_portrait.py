"""Two units in the plane: shrinking certified balls, a film, and an energy (--help tells the options)."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["phase-portrait", *sys.argv[1:]]))
