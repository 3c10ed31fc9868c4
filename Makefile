# The commands of the README. Paths are relative, so that a checkout may stand in a folder with spaces.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SITE := docs/_build/html
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: train test docs stress quick format clean

train: $(VENV)/installed
	$(RUN) -m lowland demo

test: $(VENV)/installed-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not stress"

stress: $(VENV)/installed-dev
	$(RUN) -m pytest -n auto --dist load -m stress

docs: $(VENV)/installed-docs
	$(RUN) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs $(SITE)
	@echo "The site is $(SITE)/index.html"

quick: $(VENV)/installed-dev
	$(RUN) -m pytest -n auto --dist loadfile -m "not slow and not stress"

format: $(VENV)/installed-dev
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) docs/_build docs/gallery docs/results/figures/*/figure.svg dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, got " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/installed-docs: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) -e ".[docs]"
	touch $@ $(VENV)/installed

$(VENV)/installed-dev: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	touch $@ $(VENV)/installed $(VENV)/installed-docs
