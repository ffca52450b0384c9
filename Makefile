# make demo: set up, run the small study on synthetic data, write the report.   make test: set up, pass the tests.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
SHELL  := /bin/bash
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
JOBS   ?= 2
# one thread per process: the same bits whatever the machine, and two runs side by side do not fight
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test test-slow bench lint lock readme outputs docs clean setup

setup: $(READY)

$(READY): requirements.lock pyproject.toml tools/sieve_lib_first.pth
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and f"Sieve is tested on Python 3.11 to 3.13; {sys.executable} is {v[0]}.{v[1]}. Set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps kronfluence==1.0.1
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@cp tools/sieve_lib_first.pth $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/
	@touch $@

demo: $(READY)
	@$(BIN)/sieve run nbs/sweeps/demo.yaml -j $(JOBS)
	@$(BIN)/sieve report nbs/sweeps/demo.yaml

lint: $(READY)
	$(BIN)/ruff check nbs tests tools bench
	$(BIN)/ruff format --check -q nbs tests tools bench

# notebooks first, pytest last: its summary closes the output
test: $(READY) lint
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && SIEVE_OUTPUTS=$$out $(BIN)/nbdev_test --n_workers 2 --do_print --timing
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# real data, kill-and-resume at five moments, speed ratios: minutes, on a quiet machine
test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

# the table of docs/speed.md, ten minutes on a quiet machine; peers that cannot be installed are said to be missing
bench: $(READY)
	-@$(MAKE) --no-print-directory .venv-bench/.ready
	$(BIN)/python bench/run.py

.venv-bench/.ready: bench/requirements.txt $(READY)
	$(BIN)/python -m venv .venv-bench
	.venv-bench/bin/python -m pip install -q --disable-pip-version-check --no-deps -r bench/requirements.txt
	@cd $(VENV)/lib/python3*/site-packages && pwd > $(CURDIR)/.venv-bench/lib/$$(basename $$(cd ..; pwd))/site-packages/sieve_packages.pth
	@touch $@

lock: $(READY)
	@{ head -2 requirements.lock; $(BIN)/python -m pip freeze --exclude-editable | grep -v '^kronfluence' | sed 's/^\(torch==[0-9.]*\)+.*/\1/' | sort -f; } > requirements.new
	@mv requirements.new requirements.lock

clean:
	rm -rf $(VENV) outputs

readme: $(READY)
	$(BIN)/python tools/readme.py

# execute and save the notebooks whose code has changed since they were saved; a second time changes nothing
outputs: $(READY)
	$(BIN)/python tools/outputs.py

# the site, in docs/_build/html: built from the notebooks as they are saved; no network once DOCS is set up
DOCS ?= .venv-docs
docs: $(DOCS)/.ready
	$(DOCS)/bin/python tools/site_pages.py
	$(DOCS)/bin/python -m sphinx -q -W --keep-going -b html docs/_site docs/_build/html
	@echo docs/_build/html/index.html

$(DOCS)/.ready: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install -q --disable-pip-version-check -r docs/requirements.txt
	@touch $@
