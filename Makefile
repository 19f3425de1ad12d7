# Every target sets up what it needs: on a fresh machine `make test` or `make demo` is the whole instruction.

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= test,dev,notebooks,openslide,torch
DEMO   ?= demo
WORKERS ?= 2
# Further options of `jupyter lab`, such as LAB="--no-browser --port=8890".
LAB     ?=

# Measured on a machine with a fast line: what stands on the disk afterwards, and how long it took.
COST = $(if $(findstring torch,$(EXTRAS)),7 GB on disk (5 GB of it PyTorch with CUDA) and 4 to 7 minutes,1 GB on disk and one to two minutes)

BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# The stamp is what the environment was made from (checksum of pyproject.toml, extras), the link is the checkout that its `msdask` points to.
STAMP  := $(VENV)/.made-from
LINK   := $(VENV)/.linked-to

.PHONY: help install test test-slow demo lint format types map notebooks lab bench clean

help:
	@echo "make test        set up (7 GB), run all tests but the slow ones"
	@echo "make demo        set up (1 GB), make sample slides, extract patches, write a report to $(DEMO)/"
	@echo "make test-slow   only the slow tests"
	@echo "make lint        ruff, the import rules, the sizes of files and functions, the table of formats   (make format: ruff, applied)"
	@echo "make types       mypy"
	@echo "make map         draw docs/images/rooms.svg, the picture of the rooms, and write the table of formats in docs/readers.md"
	@echo "make notebooks   execute notebooks/*.ipynb, fail on an error"
	@echo "make lab         set up, open JupyterLab in notebooks/"
	@echo "make bench       benchmarks/extract.py"
	@echo "make clean       remove $(VENV), $(DEMO)/ and caches"
	@echo "VENV=folder puts the virtual environment elsewhere, PYTHON=python3.12 picks the interpreter"

install:
	@set -e; \
	key="$$(cksum < pyproject.toml)"; have="$$(cat "$(STAMP)" 2>/dev/null || true)"; extras="$(EXTRAS)"; \
	case "$$have" in "$$key",*) has="$${have#"$$key"}";; *) has=","; have=;; esac; \
	for extra in $$(echo "$(EXTRAS)" | tr , " "); do case "$$has" in *",$$extra,"*) ;; *) have=;; esac; done; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo "making $(VENV)"; rm -f "$(STAMP)"; $(PYTHON) -m venv "$(VENV)"; \
	fi; \
	if [ -z "$$have" ] || [ ! -e "$(STAMP)" ]; then \
		echo "installing msdask and its dependencies into $(VENV): $(COST)"; rm -f "$(STAMP)"; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[$(EXTRAS)]"; \
		echo "$(CURDIR)" > "$(LINK)"; echo "$$key$$has$$extras," > "$(STAMP)"; \
	elif [ "$$(cat "$(LINK)" 2>/dev/null)" != "$(CURDIR)" ]; then \
		echo "linking $(VENV) to this checkout"; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --editable .; \
		echo "$(CURDIR)" > "$(LINK)"; \
	fi

test: install
	$(PYTEST) -m "not slow"

test-slow: install
	$(PYTEST) -m slow || [ $$? -eq 5 ]  # 5: no test is marked slow

# The demo needs no PyTorch.
demo: EXTRAS = openslide
demo: install
	$(BIN)/msdask demo --output $(DEMO)
	@echo "report: $(abspath $(DEMO))/$$(cd $(DEMO) && ls *.html | head -n 1)"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python docs/rooms.py --check
	$(BIN)/python docs/readers_table.py --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install
	$(BIN)/mypy

# The picture of the rooms in docs/architecture.md, and the table of formats in docs/readers.md.
map: install
	$(BIN)/python docs/rooms.py
	$(BIN)/python docs/readers_table.py

# Executed, not changed: the outputs that are committed stay as they are.
notebooks: install
	@set -e; for notebook in notebooks/*.ipynb; do \
		[ -e "$$notebook" ] || { echo "no notebooks"; break; }; \
		echo "$$notebook"; $(BIN)/jupyter-execute --timeout=600 "$$notebook"; \
	done

# Notebooks 03 and 04 train: they need PyTorch.
lab: EXTRAS = notebooks,openslide,torch
lab: install
	$(BIN)/jupyter lab --notebook-dir=notebooks $(LAB)

bench: install
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[bench]"
	$(BIN)/python benchmarks/extract.py

clean:
	[ ! -f "$(VENV)/pyvenv.cfg" ] || rm -rf "$(VENV)"
	rm -rf "$(DEMO)" .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
