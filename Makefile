# Everything runs in an environment of the project's own; only Python is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo studio docs test test-all layers coverage test-device test-ray test-mobile lint bench failover mobile interop serving alternatives growth audits frontier notebooks independent-attacker people real-faces reproduce break soak release release-tag clean

demo: $(VENV)/.serve
	$(BIN)/sfumato demo $(IMAGES)
	@if [ -t 0 ] && [ -t 1 ] && [ -z "$$CI" ]; then \
		echo "Now in a browser, with the obfuscator in the page:"; $(BIN)/sfumato studio --port 0 || true; \
	else echo "See it in a browser: $(BIN)/sfumato studio"; fi

studio: $(VENV)/.serve
	$(BIN)/sfumato studio

# The documentation as a site in build/site; a broken link or anchor fails.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# Style, types, layers and documentation, then everything else, in three processes, of which some wait for a server
# (tests/conftest.py gives each one thread).
SUITE := $(BIN)/python -m pytest --numprocesses 3 --dist worksteal
# The processes of the suite share compiled modules even where the environment asks for none to be kept.
export PYTHONDONTWRITEBYTECODE :=
LAYERS := tests/test_architecture.py

test: $(VENV)/.dev
	$(MAKE) --jobs 2 lint docs layers
	$(SUITE) --ignore $(LAYERS)

layers: $(VENV)/.dev
	$(BIN)/python -m pytest $(LAYERS)

# With the tests that take minutes on all of CIFAR-10.
test-all: lint docs
	$(SUITE) -m ""

coverage: $(VENV)/.dev
	$(SUITE) --cov src/sfumato --cov-branch --cov-report term:skip-covered --cov-fail-under 90

# Without torch, for systems on which only the device's half is wanted: macOS, Windows.
test-device: $(VENV)/.serve
	$(PIP) aiohttp av huggingface_hub hypothesis onnx pytest 'tritonclient[grpc]'
	$(BIN)/python -m pytest tests/device tests/wire tests/artifacts

test-ray: $(VENV)/.ray
	$(BIN)/python -m pytest tests/lab/sweep tests/cloud -k ray

test-mobile: .interop/executorch/.installed
	.interop/executorch/bin/python -m pytest tests/lab/export/test_executorch.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/device_latency.py
	$(BIN)/python benchmarks/device_nets.py
	$(BIN)/python benchmarks/quantize.py
	$(BIN)/python benchmarks/training_step.py
	$(BIN)/python benchmarks/training_processes.py
	$(BIN)/python benchmarks/device_install.py
	$(BIN)/python benchmarks/studio.py
	$(BIN)/python benchmarks/protect_many.py
	$(BIN)/python benchmarks/async_client.py

# Kills a replica under load, of the embedded server and of Ray's: results/failover.json.
failover: $(VENV)/.ray
	$(BIN)/python benchmarks/serving/failover.py

# The shipped obfuscators under a phone's runtime beside ONNX Runtime: results/mobile-runtimes.json.
mobile: .interop/executorch/.installed
	.interop/executorch/bin/python benchmarks/mobile_runtimes.py

# Our client against servers that nobody here wrote, and the other way round: results/interop.json, docs/interop.md.
interop: $(VENV)/.dev $(patsubst %,.interop/%/.installed,triton kserve mlserver schemathesis)
	$(BIN)/python benchmarks/interop/run.py

# What a user would pick instead: results/alternatives.json, docs/alternatives.md. What cannot be installed is left out.
alternatives: $(VENV)/.dev
	-$(MAKE) --keep-going $(patsubst %,.interop/%/.installed,crypten spu tenseal)
	$(BIN)/python benchmarks/alternatives/run.py

# How cost grows: results/growth.json, docs/growth.md.
growth: $(VENV)/.dev
	$(BIN)/python benchmarks/growth.py

# Our server's speed beside theirs: results/serving.json, about four minutes.
serving: $(VENV)/.dev $(patsubst %,.interop/%/.installed,triton kserve mlserver litserve) .interop/wrk/.unpacked
	$(BIN)/python benchmarks/serving/run.py

# Mutated messages, requests, bundles and checkpoints, and endpoints that misbehave: results/break.json, docs/break-test.md.
# ARGS="--scale 0.01" is shorter; atheris is left out where it cannot be installed.
break: $(VENV)/.dev .interop/schemathesis/.installed
	-$(MAKE) .interop/atheris/.installed
	$(BIN)/python benchmarks/break/run.py $(ARGS)

# The server at full load for half an hour, with reloads, killed replicas and clients that misbehave: results/soak.json.
soak: $(VENV)/.dev
	$(BIN)/python benchmarks/break/soak.py $(ARGS)

# Wheel, sdist, SBOM and checksums in dist/, from the last commit. Ends with 3 if the advisory database cannot be reached.
release: .interop/release/.installed
	.interop/release/bin/python scripts/release.py $(ARGS)

# Fails unless TAG is this version's, vX.Y.Z.
release-tag:
	@version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' src/sfumato/__init__.py); \
	test "$(TAG)" = "v$$version" || { echo "the tag $(TAG) is not v$$version" >&2; exit 1; }

# The load comes from wrk: the system's, or else Debian's packages, unpacked here without being installed.
.interop/wrk/.unpacked:
	mkdir -p .interop/wrk
	command -v wrk > /dev/null || (cd .interop/wrk && apt-get download wrk libluajit-5.1-2 && \
		for package in *.deb; do dpkg -x $$package .; done)
	touch $@

# Each in an environment of its own, as each pins what another cannot have.
INTEROP_triton := nvidia-pytriton==0.7.0 'numpy<2' onnxruntime
INTEROP_kserve := kserve==0.21.0 onnxruntime
INTEROP_mlserver := mlserver==1.7.1 onnxruntime
INTEROP_litserve := litserve==0.2.19 onnxruntime
INTEROP_schemathesis := schemathesis==4.32.5
INTEROP_atheris := --constraint constraints.txt atheris==3.0.0 numpy
INTEROP_release := --constraint constraints.txt build==1.6.1 hatchling brotli cyclonedx-bom==7.5.0 pip-audit==2.10.1
INTEROP_executorch := --constraint constraints.txt --editable '.[executorch]' pytest
# CrypTen names a package that can no longer be built among those that it needs; what it really needs stands here.
INTEROP_crypten := --no-deps crypten==0.4.1 && .interop/crypten/bin/python -m pip install --quiet \
	torch==2.13.0 torchvision numpy omegaconf onnx pyyaml
INTEROP_spu := spu==0.9.5
INTEROP_tenseal := tenseal==0.3.18 numpy

.interop/%/.installed: Makefile
	test -x .interop/$*/bin/python || $(PYTHON) -m venv .interop/$*
	.interop/$*/bin/python -m pip install --quiet --disable-pip-version-check $(INTEROP_$*)
	touch $@

# The paper's tables, at the size of a CPU; what is there is kept.
reproduce: $(VENV)/.dev
	$(BIN)/python -m reproduction all

# From results/audits: the plot and the tables of docs/results.md, and the points on the page of `sfumato studio`.
frontier: $(VENV)/.dev
	$(BIN)/sfumato frontier results/audits --highlight cifar10-resnet20-sketch -o docs/images/frontier.png > /dev/null
	$(BIN)/sfumato frontier results/audits --json > src/sfumato/apps/studio/frontier.json
	$(BIN)/python -m scripts.write_results

# The audits of the baselines, anew where a bundle is newer: results/audits/NAME.json, about 20 minutes each. Then `make frontier`.
BASELINES := blur cloak downsample identity joint max-entropy noise nopeek pca pixelate scramble-blocks scramble-pixels shredder

audits: $(BASELINES:%=results/audits/%.json)

results/audits/joint.json: RETRAINED := --classifier runs/baselines/joint/classifier

$(BASELINES:%=results/audits/%.json): results/audits/%.json: runs/baselines/%/bundle/bundle.json
	$(BIN)/sfumato audit runs/baselines/$*/bundle $(RETRAINED) --budget standard --compare results/audits -o audits/$* --resume
	cp audits/$*/audit.json $@

runs/baselines/%/bundle/bundle.json: | $(VENV)/.dev
	$(BIN)/sfumato baseline $* --overwrite

# The notebooks' outputs, which the documentation shows. ARGS=NAME runs one of them.
notebooks: $(VENV)/.dev
	$(BIN)/python -m scripts.run_notebooks $(ARGS)

# An attacker of its own against every audit in results/audits, about ten minutes each: results/independent-attacker.json.
independent-attacker: $(VENV)/.dev
	$(BIN)/python benchmarks/independent_attacker.py $(ARGS)

# What obfuscators hide of drawn people and what not: trained, audited, and put into docs/how-to/private-attributes.md. What is there is kept.
COLUMNS := glasses hat beard skin hair style identity
OF_PEOPLE := faces-resnet20-sketch faces-resnet20-obfuscator pixelate blur
FACES := --classifier runs/faces-resnet20/bundle --data faces

people: $(OF_PEOPLE:%=results/people/%.json)
	$(BIN)/sfumato audit --attributes-table results/people --into docs/how-to/private-attributes.md

results/people/%.json: runs/%/bundle/bundle.json
	$(BIN)/sfumato audit runs/$*/bundle $(FACES) $(COLUMNS:%=--attribute %) --budget attributes -o audits/people/$* --overwrite
	mkdir -p results/people
	cp audits/people/$*/audit.json $@

# What real faces reveal, sent in thirteen ways: results/people/faces96.json, docs/people.md; about three hours. DATA is a folder of faces.
real-faces: $(VENV)/.dev
	$(BIN)/python benchmarks/people.py $(DATA)

runs/faces-resnet20/bundle/bundle.json: | $(VENV)/.dev
	$(BIN)/sfumato train recipes/faces-resnet20.toml --overwrite

$(patsubst %,runs/%/bundle/bundle.json,$(filter faces-%,$(OF_PEOPLE))): runs/%/bundle/bundle.json: | runs/faces-resnet20/bundle/bundle.json
	$(BIN)/sfumato train recipes/$*.toml --overwrite

$(patsubst %,runs/%/bundle/bundle.json,$(filter-out faces-%,$(OF_PEOPLE))): runs/%/bundle/bundle.json: | runs/faces-resnet20/bundle/bundle.json
	$(BIN)/sfumato baseline $* $(FACES) -o runs/$* --overwrite

# The device's and the server's side: no torch.
$(VENV)/.serve: pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[serve]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.serve

# Ray is large, and only several replicas, and sweeps that run several points at once, need it.
$(VENV)/.ray: $(VENV)/.dev
	$(PIP) --editable '.[ray]'
	touch $@

clean:
	rm -rf $(VENV) .interop build dist
