"""Classifiers with Lipschitz bounds: trained, certified and attacked, beside the paper's numbers."""

import sys

from equilibrium.cli import main

if __name__ == "__main__":
    sys.exit(main(["mnist-robustness", *sys.argv[1:]]))
