#!/bin/sh
# Makes benchmarks/.rivals-crown, an environment of its own for auto_LiRPA, which crown.py compares with.
# Usage: benchmarks/make_crown.sh [PYTHON]     (PYTHON: the interpreter to build it with; python3 by default)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
"${1:-python3}" -m venv --clear "$here/.rivals-crown"
pip="$here/.rivals-crown/bin/python -m pip install -qq --disable-pip-version-check --no-input"
# torch as the library has it; auto_LiRPA 0.3, the newest in the registry, asks for torch below 1.13 and torchvision:
# it does without the latter, and crown_worker.py gives it what it wants of the former. It needs numpy 1.
$pip "torch$(sed -n 's/^torch//p' "$here/../constraints.txt" | head -1)" numpy==1.26.4 packaging appdirs pyyaml ninja \
  setuptools tqdm sortedcontainers
$pip --no-deps auto_LiRPA==0.3
"$here/.rivals-crown/bin/python" -c "from importlib.metadata import version as v; print('installed auto_LiRPA', v('auto_LiRPA'))"
