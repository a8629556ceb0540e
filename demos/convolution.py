"""Equilibrium networks on images: trained, certified as they run, attacked and looked at."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["convolution", *sys.argv[1:]]))
