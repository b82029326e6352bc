# `make demo` trains a small U-Net and draws pictures; `make test` runs the tests. Both set up .venv first.
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell .ci/find-python 3.13 3.12 3.11 || echo python3)
endif
VENV := .venv
BIN := $(VENV)/bin
PRINT_VERSION := -c 'import platform; print(platform.python_version())'
VERSION := $(shell $(PYTHON) $(PRINT_VERSION))
# The name contains the version, because an environment only works with its own Python version.
STAMP := $(VENV)/.installed-$(VERSION)
DOCS_STAMP := $(VENV)/.installed-docs-$(VERSION)

# The tests that depend most on the versions of JAX and related packages. pyright checks that the language features
# exist in Python 3.11.
QUICK := tests/ops tests/train tests/inspect tests/weights/test_native.py \
	$(addprefix tests/data/test_,pipeline.py transforms.py) $(addprefix tests/viz/test_,structure.py tracing.py) \
	$(addprefix tests/test_,blocks.py compiling.py extras.py import.py inference.py nnx.py)

# The part of `make parity` that compares outputs with references, and not densezoo with itself.
REFERENCES := tests/benchmarks tests/decoders tests/encoders tests/models/test_detectors.py tests/models/test_siamese.py \
	$(addprefix tests/weights/test_,conventions.py diffusers.py export.py families.py parity.py)

.PHONY: demo test test-oldest test-quick parity references lint types doctest docs readme fuzz clean

$(STAMP): pyproject.toml
	@$(PYTHON) --version
	@if [ -e $(VENV) ] && [ "$$($(BIN)/python $(PRINT_VERSION))" != "$(VERSION)" ]; then \
		echo "$(VENV) was made by another Python than $(VERSION): recreating it"; rm -rf $(VENV); \
	fi
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && uv pip install --quiet --python $(BIN)/python -e '.[test]'; \
	else \
		$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'; \
	fi
	@touch $@

demo: $(STAMP)
	rm -rf out/tiny_unet
	$(BIN)/python examples/tiny_unet.py --out out/tiny_unet

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

# The oldest supported Python, with the newest jax that supports it.
test-oldest:
	@python=$$(.ci/find-python 3.11) || { echo "make test-oldest needs Python 3.11" >&2; exit 1; }; \
	$(MAKE) test-quick PYTHON=$$python VENV=.venv311

test-quick: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal $(QUICK)

parity: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m parity tests

references: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m parity $(REFERENCES)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

doctest: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -p no:cacheprovider --doctest-modules densezoo

# The site, in docs/_build/html.
docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html

$(DOCS_STAMP): $(STAMP)
	@if command -v uv >/dev/null 2>&1; then \
		uv pip install --quiet --python $(BIN)/python -e '.[docs]'; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'; \
	fi
	@touch $@

# The zoo's tables in the README, from the registry.
readme: $(STAMP)
	$(BIN)/python -m densezoo.viz.readme README.md

# Searches for files that readers fail on. atheris has wheels for Python 3.11 to 3.13 on Linux.
fuzz: $(STAMP)
	@if command -v uv >/dev/null 2>&1; then uv pip install --quiet --python $(BIN)/python atheris; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check atheris; fi
	$(BIN)/python -m benchmarks.fuzz --seconds 100

clean:
	rm -rf .venv .venv311 out docs/_build docs/api
