# Everything runs in an environment of the project's own; only Python is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-ray lint bench clean

demo: $(VENV)/.serve
	$(BIN)/sfumato demo $(PICTURES)

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest tests/sweep/test_ray.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/device_latency.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/device_install.py

# The device's and the server's side: no torch.
$(VENV)/.serve: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[serve]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.serve

# Ray is large, and only sweeps that run several points at once need it.
$(VENV)/.ray: $(VENV)/.dev
	$(PIP) --editable '.[ray]'
	touch $@

clean:
	rm -rf $(VENV) build dist
