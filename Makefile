# Everything runs in an environment of the project's own; only Python is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo studio test test-ray lint bench frontier clean

demo: $(VENV)/.serve
	$(BIN)/sfumato demo $(PICTURES)
	@if [ -t 0 ] && [ -t 1 ] && [ -z "$$CI" ]; then \
		echo "Now in a browser, with the obfuscator in the page:"; $(BIN)/sfumato studio --port 0 || true; \
	else echo "See it in a browser: $(BIN)/sfumato studio"; fi

studio: $(VENV)/.serve
	$(BIN)/sfumato studio

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
	$(BIN)/python benchmarks/studio.py

# The plot's points, for the page of `sfumato studio`.
frontier: $(VENV)/.dev
	$(BIN)/sfumato frontier results/audits --json > src/sfumato/studio/frontier.json

# The device's and the server's side: no torch.
$(VENV)/.serve: pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[serve]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.serve

# Ray is large, and only sweeps that run several points at once need it.
$(VENV)/.ray: $(VENV)/.dev
	$(PIP) --editable '.[ray]'
	touch $@

clean:
	rm -rf $(VENV) build dist
