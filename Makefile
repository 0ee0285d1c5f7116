# Each target works as the first command on a fresh clone: what it needs, `setup` builds.

# The system's own, where it can build environments: everybody on the machine may run it, and distributions compile
# theirs with profiles, which makes it a fifth faster than one that was compiled without.
MODERN = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell /usr/bin/python3 -c 'import ensurepip; $(MODERN)' 2>/dev/null && echo /usr/bin/python3 && exit; \
	for p in python3 python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c '$(MODERN)' 2>/dev/null && break; done; echo $$p)
PREFIX ?= $(if $(filter 0,$(shell id -u)),/opt/qrunner,$(HOME)/.local/share/qrunner)
BINDIR ?= $(if $(filter 0,$(shell id -u)),/usr/local/bin,$(HOME)/.local/bin)
TESTS  ?= tests
# More than there are cores: many tests wait for processes of their own.
JOBS   ?= 5

BIN    = .venv/bin
STAMP  = .venv/.complete
PYTEST = $(BIN)/python -m pytest $(PYTEST_ARGS)

# The tests start thousands of processes: what one has compiled, the next need not. `clean` removes it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo run test stress check format lint types bench docs install clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables: PYTHON (builds .venv), TESTS (a file or folder), JOBS, PYTEST_ARGS, QUICK=1 (bench), PREFIX and BINDIR (install)'

setup: $(STAMP) $(BIN)/qrunner-inject  ## build .venv with qrunner-ctl, qrunner-inject and the tools for development

$(STAMP): pyproject.toml .ci/build-venv
	@.ci/build-venv '$(PYTHON)' .venv --editable '.[dev]'
	@touch $@

# Kept equal to the checkout's own by make, since nothing else would notice that this copy has grown old.
$(BIN)/qrunner-inject: bin/qrunner-inject $(STAMP)
	@install -m 755 $< $@
	@$(BIN)/python .ci/name_interpreter.py $@

demo: setup  ## start the default site with embedded SMTP sinks, watch real messages go through it; stops by itself
	@$(BIN)/python etc/demo.py

run: setup  ## the default site, etc/qrunner.toml, in the foreground; Ctrl-C stops it
	@$(BIN)/qrunner-ctl --config etc/qrunner.toml start --foreground

test: setup  ## the tests, the heavy ones left out
	@tests/wants
	@$(PYTEST) -n $(JOBS) --dist loadfile -m 'not stress' $(TESTS)

stress: setup  ## the heavy tests: minutes, not seconds
	@tests/wants
	@$(PYTEST) -n 2 --dist loadfile -m 'stress and not alone' $(TESTS)
	@$(PYTEST) -m alone $(TESTS)

check: lint types test  ## format, lint, types and tests: what CI runs

format: setup  ## put the code into the one format
	@$(BIN)/ruff check --quiet --fix --select I .
	@$(BIN)/ruff format .

lint: setup  ## is the format right, is anything suspicious
	@$(BIN)/ruff format --check --quiet --diff .
	@$(BIN)/ruff check .

types: setup  ## mypy --strict
	@$(BIN)/mypy

bench: setup  ## measure, each figure beside its peer's (QUICK=1: roughly, in two minutes, the long ones left out)
	@$(BIN)/python bench/run.py $(if $(QUICK),--quick)

docs: setup  ## docs/*.md as pages in build/docs; a link that leads nowhere is an error
	@$(BIN)/python docs/build.py build/docs

install:  ## qrunner into an environment of its own in PREFIX, its commands linked into BINDIR
	@.ci/build-venv '$(PYTHON)' '$(PREFIX)' .
	@'$(PREFIX)/bin/python' .ci/name_interpreter.py '$(PREFIX)/bin/qrunner-inject'
	@mkdir -p '$(BINDIR)'
	@ln -sf '$(PREFIX)/bin/qrunner-ctl' '$(PREFIX)/bin/qrunner-inject' '$(BINDIR)/'
	@echo 'Installed. A site is laid out by: $(BINDIR)/qrunner-ctl init DIRECTORY'

clean:  ## remove what make built; queues, mail and logs stay
	@rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
