PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
RANKS ?= 2
STRATEGY ?= fedpaq,period=8
JOB ?= --workers $(RANKS) --model llama-nano,num_hidden_layers=2 --steps 1200 --warmup 100 --overwrite
ARGS ?=

# One thread a process: ranks and test workers already fill the cores.
export OMP_NUM_THREADS ?= 1
# Half a second of a core for each of the processes that tests start: they would compile us anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup train check test long lint docs bench fuzz

setup: $(STAMP)

# torchtitan asks for an older `datasets` than ours, which its trainer does not need on tokens of our own.
TITAN := torchtitan torchdata tyro docstring_parser einops spmd_types torch_checkpointing

# Every target below stands on this one; it runs again only when what is installed or built has changed.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/thinwire/kernels/cpu/*.cpp src/thinwire/kernels/cpu/*.h)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,data,hub,entropy,hf,lightning,ray,docs,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps $(TITAN)
	@touch $@

# The same model, text and batches twice, dense and thin, then the two side by side: about three minutes on two cores.
train: $(STAMP)
	$(BIN)/thinwire train $(JOB) --strategy dense --out runs/dense $(ARGS)
	$(BIN)/thinwire train $(JOB) --strategy $(STRATEGY) --out runs/thin $(ARGS)
	$(BIN)/thinwire compare runs/dense runs/thin --out runs/compare.svg

# Three workers, as tests of ranks wait for one another; who is done first takes over what is left.
PYTEST := $(BIN)/python -m pytest -n 3 --dist worksteal

test: $(STAMP)
	$(PYTEST) $(ARGS)

# For every edit, in a minute and a half: the laws of codecs, some of each on each class of routes, and
# what guards the tree. It leaves out real processes, GPU kernels in the interpreter, labs, data, the
# command line, benches and examples.
CHECK := tests/core tests/net tests/when tests/on tests/what tests/drive/test_local.py tests/drive/test_sim.py \
	$(filter-out $(addprefix tests/test_,examples.py adding_a_codec.py adding_a_route.py docs.py \
	frozen.py proofs.py ranks.py theory.py warm.py),$(wildcard tests/test_*.py))
check: $(STAMP)
	HYPOTHESIS_PROFILE=check $(PYTEST) $(CHECK) $(ARGS)

# What is slow by nature: 34 seeded faults on four emulated hosts, about ten minutes, which fails where
# a target of them is missed; every build of the kernels under sanitizers, about five; and all pairs
# of a codec and a route, about five.
long: $(STAMP)
	timeout --kill-after=30 2700 $(BIN)/python -m benchmarks.faults --seed 0 $(ARGS)
	$(BIN)/python scripts/fuzz_kernels.py --seconds 60
	$(PYTEST) -m long tests

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Random bytes into the native kernels, under sanitizers; a short run of it is one of the tests.
SECONDS ?= 600
fuzz: $(STAMP)
	$(BIN)/python scripts/fuzz_kernels.py --seconds $(SECONDS)

docs: $(STAMP)
	$(BIN)/mkdocs build --strict

# Most figures of benchmarks/README.md, on an otherwise idle machine; what it leaves out is said there.
BENCHES := import_time meter_vs_counters cpu_time step_time_vs_ddp kernels codec_share lab_truth wire overlap kills families convergence
bench: $(STAMP)
	@for name in $(BENCHES); do $(BIN)/python -m benchmarks.$$name --json benchmarks/results/$$name.json || exit 1; done
	$(BIN)/thinwire bench --out benchmarks/results/bench
