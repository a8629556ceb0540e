#!/bin/sh
# Makes benchmarks/.rivals, an environment of their own for the libraries that solve_time.py compares with.
# Usage: benchmarks/make_rivals.sh [PYTHON]     (PYTHON: the interpreter to build it with; python3 by default)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"${1:-python3}" -m venv --clear "$here/.rivals"
# the versions of torch, torchdiffeq, scipy and numpy are those the library itself is tested with
"$here/.rivals/bin/python" -m pip install -qq --disable-pip-version-check --no-input -c "$here/../constraints.txt" \
  torch torchdiffeq scipy numpy torchdeq==0.1.0
"$here/.rivals/bin/python" - <<'PYTHON'
from importlib.metadata import version

print("installed", ", ".join(f"{name} {version(name)}" for name in ("torch", "torchdiffeq", "torchdeq", "scipy", "numpy")))
PYTHON
