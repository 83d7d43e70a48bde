# Everything that a fresh machine with Python >= 3.11 and a C++ compiler needs is done by `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# real faces and weights for the tests that need them; those skip, with the reason, where it is missing
export FASTADV_DATA ?= $(abspath ../shared/data)
# wheels alone, each by its SHA-256: no code of a package runs while it is installed. `make lock` writes the files.
LOCKS := .ci/requirements
LOCKED := --quiet --no-deps --require-hashes --only-binary :all:
SANITIZER ?= compute-sanitizer

.PHONY: test test-slow torture fuzz nightly demo docs lint types lock audit wheel wheel-test install-test triton-compile ci sanitize sanitize-quick gpu-check gpu-sanitize bench clean

# torch comes by its exact version, without a hash: that is the CPU build where one is offered
$(BIN)/python: constraints.txt $(wildcard $(LOCKS)/*.txt)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(LOCKED) -r $(LOCKS)/ci.txt
	$(BIN)/pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/pip install $(LOCKED) -r $(LOCKS)/peers.txt
	@touch $@

$(VENV)/.built: $(BIN)/python pyproject.toml CMakeLists.txt $(wildcard csrc/* csrc/cpu/* kernels/common/* kernels/cuda/*)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# one thread a test process, two processes: on two cores twice as fast as two threads in one
test: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --durations=25

# tortures of many rounds (kills, threads, hostile clients); FASTADV_ROUNDS multiplies how often
test-slow: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

# every command is killed at random moments, FASTADV_ROUNDS times (default 10), and disturbed at its changes of the disk;
# figures go to bench/results
torture: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py --rounds $(or $(FASTADV_ROUNDS),10) --json

# a million damaged and hostile files for the readers; figures go to bench/results, inputs of finds to build/fuzz
fuzz: $(VENV)/.built
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --json --out bench/results

# the long forms of what CI does in short: docs/robustness.md
nightly: torture fuzz sanitize

# synthetic faces, a shipped network, four attacks, and a report: open fastadv-demo/report.html
demo: $(VENV)/.built
	$(BIN)/fastadv demo

# the site, build/docs/index.html: a warning, a dead link or anything loaded from another host is an error; -E reads all pages anew,
# since Sphinx repeats no warning of a page that it takes from its cache
docs: $(VENV)/.built
	$(BIN)/python -m sphinx -q -E -W --keep-going -n -b html docs build/docs
	$(BIN)/python docs/check_site.py build/docs

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.built
	$(BIN)/mypy

# .ci/requirements/*.txt: the versions of constraints.txt with the hashes of all their files
LOCK = $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11.5 --generate-hashes --no-annotate \
  --custom-compile-command 'make lock' --constraints constraints.txt --excludes $(LOCKS)/excluded.in
lock:
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet -c constraints.txt uv
	$(LOCK) -o $(LOCKS)/run.txt pyproject.toml $(LOCKS)/run.in
	$(LOCK) -o $(LOCKS)/ci.txt --extra test --extra fuzz --extra lint --extra docs pyproject.toml $(LOCKS)/ci.in
	$(LOCK) -o $(LOCKS)/peers.txt --no-deps $(LOCKS)/peers.in

# known vulnerabilities of the packages in constraints.txt; an error as well where no advisory service answers
AUDIT ?=
audit:
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet -c constraints.txt pip-audit
	$(VENV)-audit/bin/python .ci/audit.py $(AUDIT)

# dist/: the wheel of this machine, with the platform tag that auditwheel finds, and its bill of materials, once the wheel
# holds what it should and works in a fresh environment; its files carry the time of the commit
wheel: export SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),315532800)
wheel: $(VENV)/.built
	rm -rf build/wheel build/repaired
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w build/wheel .
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --plat auto -w build/repaired build/wheel/*.whl
	$(BIN)/python .ci/check_wheel.py build/repaired/*.whl
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/pip install $(LOCKED) --report build/wheel/locked.json -r $(LOCKS)/run.txt
	$(VENV)-wheel/bin/pip install --quiet --report build/wheel/torch.json -c constraints.txt torch==2.13.0
	$(VENV)-wheel/bin/pip install --quiet --no-index build/repaired/*.whl
	$(VENV)-wheel/bin/python -I .ci/check_install.py --torch 2.13.0
	$(BIN)/python .ci/sbom.py build/repaired/*.whl --python $(VENV)-wheel/bin/python \
	  --report build/wheel/locked.json --report build/wheel/torch.json
	mkdir -p dist && cp build/repaired/* dist/

# the tests with that wheel, in its environment, from a folder where the source tree is out of reach; in Triton's interpreter two
# operations only, since all run there from the source tree. A wheel has the same files, and tests/compile compiles all of its kernels.
wheel-test: wheel
	rm -rf build/elsewhere && mkdir -p build/elsewhere
	$(VENV)-wheel/bin/pip install $(LOCKED) -r $(LOCKS)/ci.txt -r $(LOCKS)/peers.txt
	$(VENV)-wheel/bin/pip install --quiet --no-index "$$(ls build/repaired/*.whl)[test]"
	cp -r tests examples docs pyproject.toml build/elsewhere/
	cd build/elsewhere && export OMP_NUM_THREADS=1 && \
	  TRITON_INTERPRET=0 $(abspath $(VENV)-wheel)/bin/python -m pytest -q -n 2 --ignore=tests/packaging && \
	  $(abspath $(VENV)-wheel)/bin/python -m pytest -q -n 2 tests/ops/test_matrix.py -k triton

# `pip install .` as a user does it who has torch: it builds apart from the environment and keeps that torch. No
# constraints, or there would be nothing to see; not optimised and without CUDA, since what counts is what pip does.
install-test:
	$(PYTHON) -m venv --clear $(VENV)-install
	$(VENV)-install/bin/pip install --quiet -c constraints.txt torch==2.13.0 numpy
	FASTADV_CUDA=off FASTADV_WERROR=off $(VENV)-install/bin/pip install --quiet -C build-dir=build/install \
	  -C cmake.define.CMAKE_CXX_FLAGS_RELEASE=-O0 .
	$(VENV)-install/bin/python -I .ci/check_install.py --torch 2.13.0

triton-compile: $(VENV)/.built
	$(BIN)/python -m pytest -q tests/compile

# a warning of the compiler ends the builds of this target, and of no other: a user's compiler has warnings of its own
ci: export FASTADV_WERROR = on
ci: lint types docs test test-slow sanitize-quick wheel-test install-test

# The C++ of the operations under ASan, UBSan and TSan: all of it, and the part that CI has time for. GCC alone.
sanitize sanitize-quick: $(VENV)/.built
	$(BIN)/python -m bench.sanitize $(if $(findstring quick,$@),--quick,--json)

# On a machine with a CUDA device and the packages it already has: build, prove, measure. The tests and benchmarks run
# beside the source tree, not in it, so that they meet the installed package with its compiled module. --all leaves out
# peers, scale and streaming, which take an hour. On a machine that is there for minutes: bench/on_gpu.sh
GPU_TESTS ?=
GPU_BENCH ?= --all
gpu-check:
	$(PYTHON) -m pip install --no-build-isolation --no-deps .
	rm -rf build/gpu && mkdir -p build/gpu && cp -r tests bench docs examples pyproject.toml build/gpu/
	cd build/gpu && $(PYTHON) -m pytest -q -p no:benchmark -m gpu $(GPU_TESTS)
	$(MAKE) gpu-sanitize
	cd build/gpu && $(PYTHON) -m bench.run $(GPU_BENCH) --json --device cuda --out $(abspath bench/results) --commit "$$(git rev-parse HEAD 2>/dev/null)"

# Our CUDA kernels under the sanitizer, where the toolkit has it: memcheck on all of them, racecheck on those that share
# memory between threads. PyTorch's cache is off, since what lies behind a cached tensor belongs to it as well.
SANITIZE := $(SANITIZER) --target-processes all --report-api-errors no --error-exitcode 99
gpu-sanitize:
	@if ! command -v $(SANITIZER) > /dev/null; then \
	  echo "gpu-sanitize: skipped, $(SANITIZER) is not on the PATH"; \
	else \
	  set -ex; cd build/gpu; export PYTORCH_NO_CUDA_MEMORY_CACHING=1; \
	  $(SANITIZE) --tool memcheck $(PYTHON) -m pytest -q -p no:benchmark -m gpu -k cuda-gpu tests/ops; \
	  $(SANITIZE) --tool racecheck $(PYTHON) -m pytest -q -p no:benchmark -m gpu -k cuda-gpu \
	    tests/ops/test_matrix.py tests/ops/test_average_pool.py tests/ops/test_centroid_distances.py; \
	fi

bench: $(VENV)/.built
	$(BIN)/python -m bench.run --all --json

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
