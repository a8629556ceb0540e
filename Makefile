# The two commands of the README:
#   make demo    solves the same equilibria with every solver and writes figures and numbers into out/
#   make test    runs the whole test suite
# Both need only Python 3.11 or newer and make: they install what they use into .venv, once.
# Variables: PYTHON (the interpreter to build .venv with), OUT (the folder of the demo's results),
#            DEMO_ARGS and TEST_ARGS (passed on, for example: make test TEST_ARGS="-m 'not slow'").

PYTHON ?= python3
OUT ?= out
DEMO_ARGS ?=
TEST_ARGS ?=

# The types are checked for the oldest Python that is supported (pyproject.toml) and for this one.
NEWEST := 3.14

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install -qq --disable-pip-version-check --no-input -c constraints.txt

# There is no display to draw on, and none is needed.
export MPLBACKEND := Agg

.PHONY: demo test lint typecheck docs clean
.DELETE_ON_ERROR:
# Two pips at work in one .venv would spoil it.
.NOTPARALLEL:

demo: $(VENV)/.stamp-demo
	$(VENV)/bin/contracting-equilibria compare-solvers --out "$(OUT)" $(DEMO_ARGS)

# One thread for each of the two workers: more would compete for the same cores.
test: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --durations 10 $(TEST_ARGS)

lint: $(VENV)/.stamp-dev
	$(RUN) -m ruff check .

typecheck: $(VENV)/.stamp-dev
	$(RUN) -m mypy
	$(RUN) -m mypy --python-version $(NEWEST)

# The site, written anew and walked through. Demos and notebooks run again only where they were changed, on one thread
# each, as the tests do.
docs: $(VENV)/.stamp-docs
	rm -rf docs/_build/html
	OMP_NUM_THREADS=1 $(RUN) -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	SITE=docs/_build/html $(RUN) -m pytest -q tests/test_site.py

clean:
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf docs/_build docs/_demos docs/gallery docs/reference docs/commands.rst
	find contracting equilibrium tests demos docs -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.stamp-python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, and '$(PYTHON)' is not one ($$("$(PYTHON)" --version 2>&1 | head -n 1));" \
	    "name another with: make $(firstword $(MAKECMDGOALS) demo) PYTHON=python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

# A stamp is written only after a complete install, so one that was interrupted is repeated.
$(VENV)/.stamp-%: $(VENV)/.stamp-python pyproject.toml constraints.txt
	@echo "Installing the library with its '$*' extra into $(VENV) (once; PyTorch is large, so this takes minutes) ..."
	@$(INSTALL) -e '.[$*]'
	@touch $@
