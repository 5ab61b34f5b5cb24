# Every target does its own set-up; the stamp makes sure that nothing is installed twice.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint check-long clean

setup: $(STAMP)

$(STAMP): requirements.txt requirements-test.txt pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(STAMP)
	rm -rf build/demo
	$(VENV)/bin/python -m lae_jax.demo --out build/demo

test: $(STAMP)
	$(VENV)/bin/python -m pytest

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# What needs more minutes than CI has: every fault in all its rounds, exports of the published
# models, and the demo's effect in three of three seeds.
check-long: $(STAMP)
	$(VENV)/bin/python -m benchmarks.survival
	$(VENV)/bin/python -m benchmarks.export_sizes
	for seed in 0 1 2; do $(VENV)/bin/python -m lae_jax.demo --out build/demo --seed $$seed || exit 1; done

clean:
	rm -rf build $(VENV)
