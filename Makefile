# make demo   trains BigGAN on handwritten digits on the CPU
# make test   lint and all tests; those against the PyTorch programs are skipped without torch
# make long   the tests that take too long for every change: networks of full size
# make lint   format, lint and types only
# make interop  installs what tests compare with or need: torch, the PyTorch programs, the TPU
#               compiler, the app's page and what looks at it, and pictures (16 MB), for
#               which it needs npm
#
# Each makes the environment it needs in .venv first. PYTHON says which Python that is made of.

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test long lint interop

demo: .venv/.installed
	$(BIN)/biggan train --config=configs/digits.py --workdir=runs/digits
	@echo "The samples are in runs/digits/samples.png"

# Most of it is compiling, which uses one core; tests of several processes want the machine alone.
test: lint
	$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile \
	  -m "not multiprocess and not long"
	$(BIN)/python -m pytest -m "multiprocess and not long"

long: .venv/.installed-test
	$(BIN)/python -m pytest -m long

lint: .venv/.installed-test
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

interop: .venv/.installed-interop

# The stamps are written last, so that an interrupted install is done again.
.venv/.made:
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))" \
	  2>/dev/null || { \
	  echo "The pinned packages need Python 3.11, 3.12 or 3.13, and $(PYTHON) is none of them:" \
	    "name one, as in 'make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12'." >&2; \
	  exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.made setup.py constraints.txt
	@echo "Installing into .venv; this takes a few minutes."
	$(PIP_INSTALL) -e .
	@touch $@

.venv/.installed-test: .venv/.made setup.py constraints.txt
	@echo "Installing into .venv; this takes a few minutes."
	$(PIP_INSTALL) -e ".[test]"
	@touch $@

.venv/.installed-interop: .venv/.made setup.py constraints.txt
	@echo "Installing into .venv; this takes a few minutes."
	$(PIP_INSTALL) -e ".[test,interop,plan,app]"
	mkdir -p .venv/emoji
	cd .venv/emoji && npm pack --silent @lobehub/fluent-emoji-3d@1.1.0
	@touch $@
