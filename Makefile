# make demo         see it work: no hardware, no root
# make run          the daemon in the foreground, on this machine's devices
#                   (BACKEND=virtual: on virtual ones; CONFIG=file: as the file says)
# make test         lint, types, unit and integration tests
# make test-kernel  tests on real kernels, in user-mode Linux
# make test-stock   a smaller set on Debian's own kernels, in QEMU
#                   (both: SCENARIO='stock sharing.SysfsTests', KERNEL=6.1; see tests/README.md)
# make test-packages    the Debian package and the container image: built, installed, used
# make fuzz         what reads bytes from the network, for ten minutes (FUZZ_SECONDS=60)
# make benchmark, make benchmark-kernel    see benchmarks/README.md
# make docs         the documents as a site, in site/
# make deb          a Debian package for this machine, in dist/
# make dist         wheel and source distribution, in dist/
# make clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

BACKEND ?=
CONFIG ?=
FUZZ_SECONDS ?= 600
KERNEL ?=
SCENARIO ?=
KERNELS := $(addprefix --kernel ,$(KERNEL))

.PHONY: demo run test lint types unit apidocs docs test-kernel test-stock kernels fuzz benchmark benchmark-kernel \
    deb dist test-packages clean

demo: $(VENV)/.installed
	$(BIN)/python docs/demo.py

run: $(VENV)/.installed
	$(BIN)/twistd --nodaemon --pidfile= usbipshare \
	    $(if $(BACKEND),--backend $(BACKEND)) $(if $(CONFIG),--config $(CONFIG))

# The parts run side by side: see tests/suite.py.
test: $(VENV)/.installed-dev
	MAKE='$(MAKE)' $(BIN)/python -m tests.suite types apidocs docs lint unit

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-dev
	$(BIN)/mypy usbip_server twisted tests fuzz benchmarks distribution docs/demo.py docs/conf.py
	cd docs/example_backend && MYPYPATH=. ../../$(BIN)/mypy \
	    --config-file ../../pyproject.toml jsonfile_backend

unit: $(VENV)/.installed-dev
	$(BIN)/python -m tests.suite unit

apidocs: $(VENV)/.installed-dev
	$(BIN)/pydoctor --quiet --html-output=apidocs usbip_server

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html docs site

test-kernel: $(VENV)/.installed-dev
	$(BIN)/python -m tests.kernel $(KERNELS) $(SCENARIO)

# Building and downloading them, which test-kernel and test-stock do when it has to be done.
kernels: $(VENV)/.installed-dev
	$(BIN)/python -m tests.kernel --build
	$(BIN)/python -m tests.kernel --machine qemu --build

test-stock: $(VENV)/.installed-dev
	$(BIN)/python -m tests.kernel --machine qemu $(KERNELS) $(SCENARIO)

fuzz: $(VENV)/.installed-fuzz
	$(BIN)/python -m fuzz --seconds $(FUZZ_SECONDS)

benchmark: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.watchers
	$(BIN)/python -m benchmarks.attack
	$(BIN)/python -m benchmarks.manyservers
	$(BIN)/python -m benchmarks.starttime
	$(BIN)/python -m benchmarks.largetree

benchmark-kernel: $(VENV)/.installed-dev
	$(BIN)/python -m tests.kernel --jobs 1 --verbose $(KERNELS) benchmarks.rivals benchmarks.secured

dist: $(VENV)/.installed-dist
	rm -f dist/*.whl dist/*.tar.gz
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz

deb: dist
	rm -f dist/*.deb
	$(BIN)/python distribution/deb.py

# What needs systemd and apt runs in a machine with Debian's kernel.
test-packages: deb
	$(BIN)/python -m tests.packages
	$(BIN)/python -m tests.kernel --machine qemu --kernel 6.1 packages

clean:
	rm -rf $(VENV) build dist apidocs site _trial_temp* .mypy_cache .ruff_cache *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	    echo 'Debian: apt-get install python3-venv' >&2; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[virtual]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/.installed-dist: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dist]'
	touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	touch $@
