"""A square wave fitted with bounded slopes: the function, its certified slope, its steepest measured slope."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["square-wave", *sys.argv[1:]]))
