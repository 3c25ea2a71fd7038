# Every target is one documented line and calls one command; what the commands do is in evalkit
# itself and in requirements/. `make` alone lists them.

MODEL    ?=
REVISION ?=
SUITE    ?= core
LIMIT    ?=
OUT      ?= results
OFFLINE  ?=
RUN      ?=
LOCK     ?=
QUANT    ?=
WORKERS  ?=
GRACE    ?=
DTYPE    ?=
DEVICE   ?=
SEED     ?=
SEEDS    ?=
STAGE    ?= staged
GPUS     ?=
SQUASHFS ?=
LEVEL    ?=
THREADS  ?=
MEMORY   ?=
PROFILE  ?=
ADAPTER  ?=
ENGINE   ?=
ENGINE_ARGS ?=
IN       ?=
GROUP    ?=
IMAGE    ?=
PYTHON   ?= python3
# `make submit`'s: evalkit's options in capitals, MAX_WALLTIME for --max-walltime. SBATCH has further
# options of sbatch, BINDS and MODULES words. Not --scratch: SCRATCH is set on many clusters, and is
# something else.
SLURM = sif in site shards max-running grace tokens-per-second workers adapter engine \
	level revision dtype profile seed threads memory limit \
	partition account qos constraint gres gpus-per-node time mem cpus sbatch max-walltime \
	finish-partition finish-qos finish-time finish-mem finish-constraint finish-sbatch \
	modules binds

# Values reach the commands through the environment and are quoted there, whatever is in them.
export MODEL REVISION SUITE LIMIT OUT OFFLINE RUN LOCK DTYPE DEVICE SEED SEEDS WORKERS GRACE
export QUANT STAGE SQUASHFS LEVEL THREADS PROFILE ADAPTER ENGINE ENGINE_ARGS IN IMAGE FROM FILE OTHER \
	GROUP GPUS
capitals = $(shell echo '$(1)' | tr 'a-z-' 'A-Z_')
export $(call capitals,$(SLURM))
EVALKIT := .venv/bin/evalkit
# In the image where there is one, else on this host; IN says otherwise.
LAUNCH   = $(EVALKIT) launch --in "$$IN" --image "$$IMAGE"
offline  = $(if $(filter-out 0 no false,$(OFFLINE)),--offline)
common   = --out "$$OUT" $(offline) $${LIMIT:+--limit "$$LIMIT"} $${DTYPE:+--dtype "$$DTYPE"} \
	$${DEVICE:+--device "$$DEVICE"} $${SEED:+--seed "$$SEED"} $${LEVEL:+--level "$$LEVEL"} \
	$${THREADS:+--threads "$$THREADS"} $${MEMORY:+--memory "$$MEMORY"} $${PROFILE:+--profile "$$PROFILE"} $${ADAPTER:+--adapter "$$ADAPTER"} \
	$${ENGINE:+--engine "$$ENGINE"} $${WORKERS:+--workers "$$WORKERS"} \
	$${GRACE:+--grace "$$GRACE"} $${GROUP:+--group "$$GROUP"} "$$@"
# ENGINE_ARGS's words, each behind its option, as the shell's own arguments: no pattern in them is
# expanded.
words    = set -f; for word in $$ENGINE_ARGS; do set -- "$$@" --engine-arg "$$word"; done;

.DEFAULT_GOAL := help
# All targets with a line of their own.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.* \#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

## Use
help: ## this list
	@awk "$$list" $(firstword $(MAKEFILE_LIST))

setup: ## make .venv for this machine; LOCK=base, cpu, cuda12 or cuda13 picks another; QUANT=1 adds quantised checkpoints
	@$(PYTHON) requirements/setup.py

demo: setup ## evaluate a tiny model that is made on the spot, or MODEL, on four small tasks: no account
	@$(words) $(LAUNCH) eval --model "$${MODEL:-demo}" --suite demo $(common)

eval: setup ## evaluate MODEL (with REVISION) on SUITE, once or with SEEDS=1,2,3; records go under OUT
	@$(words) $(LAUNCH) eval $${MODEL:+--model "$$MODEL"} $${REVISION:+--revision "$$REVISION"} \
		--suite "$$SUITE" $${SEEDS:+--seeds "$$SEEDS"} $(common)

validate: setup ## evaluate MODEL on SUITE and hold its scores against published ones
	@$(words) run=$$($(LAUNCH) eval $${MODEL:+--model "$$MODEL"} $${REVISION:+--revision "$$REVISION"} \
		--suite "$$SUITE" $(common)) && $(EVALKIT) validate "$$run"

verify: setup ## check everything that the record in RUN says
	@$(LAUNCH) verify $${RUN:+"$$RUN"}

report: setup ## write RUN's report: one HTML file, to open, mail or print
	@$(EVALKIT) report $${RUN:+"$$RUN"}

status: setup ## how far the run in RUN is
	@$(EVALKIT) status $${RUN:+"$$RUN"}

stage: setup ## fetch all that MODEL on SUITE needs without network into STAGE; SQUASHFS=FILE packs it
	@$(if $(SQUASHFS),$(EVALKIT),$(LAUNCH)) stage $${MODEL:+--model "$$MODEL"} $${REVISION:+--revision "$$REVISION"} \
		--suite "$$SUITE" --to "$$STAGE" $${GROUP:+--group "$$GROUP"} $${SQUASHFS:+--squashfs "$$SQUASHFS"}

submit: setup ## send MODEL on SUITE to Slurm, with the STAGE; in SIF, or IN=none (docs/cluster.md)
	@$(words) $(EVALKIT) submit $${MODEL:+--model "$$MODEL"} --suite "$$SUITE" --out "$$OUT" \
		--stage "$$STAGE" $(if $(filter-out 0 no false,$(FRESH)),--fresh) $${GPUS:+--gpus-per-shard "$$GPUS"} \
		$${GROUP:+--group "$$GROUP"} \
		$(foreach name,$(SLURM),$${$(call capitals,$(name)):+--$(name) "$$$(call capitals,$(name))"}) "$$@"

cancel: setup ## take what was submitted for RUN off Slurm again; what is answered is kept
	@$(EVALKIT) cancel $${RUN:+"$$RUN"}

suite-lock: setup ## write the lock of SUITE: dataset revisions, rows, counts, licences
	@$(LAUNCH) lock "$$SUITE" $(offline)

doctor: setup ## what this host has and lacks, a line each, and what to do about it
	@$(EVALKIT) doctor $${MODEL:+--model "$$MODEL"}

## Image
image: ## build the image of this commit, with LOCK's packages (BUILD_OPTIONS are docker's)
	@$(PYTHON) image/make.py build

sif: ## make evalkit.sif of that image, or of FROM: an archive, or a registry's image by digest
	@$(PYTHON) image/make.py sif

image-load: ## take over an image from FILE: an archive (.tar) or a SIF
	@$(PYTHON) image/make.py load

release: ## archive, sign and push the image (docs/release.md)
	@$(PYTHON) image/release.py

image-inventory: ## every file of the image with its digest; OTHER=image lists what differs from that one
	@$(PYTHON) image/inventory.py

image-test: ## the image's own self-test, with every runtime that has the image
	@$(PYTHON) image/make.py test

## Develop
setup-dev: ## set-up with the tools that test and lint
	@$(PYTHON) requirements/setup.py --dev

test: setup-dev ## the default tests (everything but the oracle)
	@.venv/bin/python -m pytest -n auto --maxprocesses=4 --dist=worksteal --durations=5

test-faults: setup-dev ## processes killed, disks filled, files torn, hosts and Hubs that misbehave
	@.venv/bin/python -m pytest -n auto --maxprocesses=2 --dist=worksteal -m "faults and not faults_full"

test-faults-full: setup-dev ## all of that, with a hundred kills; writes docs/faults.md
	@EVALKIT_WRITE_TABLE=1 .venv/bin/python -m pytest -m "faults or faults_full" --timeout=3600

test-browser: setup-dev ## reports in a real browser: Debian's chromium, Playwright, axe-core
	@.venv/bin/python -m pip install --quiet --require-hashes -r requirements/browser.lock
	@npm ci --silent --no-fund --no-audit --prefix tests/browser
	@.venv/bin/python -m pytest -m browser tests/browser

test-image: setup-dev ## the image built, run in every runtime, attacked from inside: 15 minutes
	@.venv/bin/python -m pytest -m image --timeout=900 tests/container

test-cluster: setup-dev ## runs on a real Slurm cluster in evalkit.sif: preempted, cut off, sent again
	@.venv/bin/python -m pytest tests/cluster -m "cluster and not cluster_full" --timeout=900

test-cluster-full: setup-dev ## the same and a time limit shorter than a shard, with an image and without
	@.venv/bin/python -m pytest tests/cluster -m cluster --timeout=900

test-trust: setup-dev ## records changed and fuzzed: what is noticed, and that nothing else happens
	@.venv/bin/python -m pytest -m "trust and not trust_full"

test-trust-full: setup-dev ## the same with 20,000 fuzzed records; writes docs/tamper.md
	@EVALKIT_WRITE_TABLE=1 .venv/bin/python -m pytest -m "trust or trust_full" --timeout=3600

test-real: setup-dev ## a real model, fetched once: beside lm-eval, killed and in shards: 8 minutes
	@.venv/bin/python -m pytest -m real -n 2 --dist=loadfile --timeout=900

oracle: setup-dev ## the tests that compare with lm-eval's own runs
	@.venv/bin/python -m pytest -m oracle --timeout=900

canary: setup-dev ## the harness's tests against lm-eval's next release: what an upgrade will break
	@.venv/bin/python -m pip install --quiet --no-deps --pre --upgrade --target build/canary lm-eval
	@PYTHONPATH=build/canary .venv/bin/python -m pytest tests/test_compat.py tests/test_harness.py

oracle-all: setup-dev ## the same for every architecture (an hour); writes docs/architectures.md
	@EVALKIT_WRITE_TABLE=1 .venv/bin/python -m pytest -m oracle_all --timeout=1800

bench: setup-dev ## lm-eval and evalkit side by side, 25 minutes; writes docs/speed.md
	@.venv/bin/python -m bench.speed

bench-core: setup-dev ## the same for 2% of core: an hour or two, goes on where it was stopped
	@.venv/bin/python -m bench.core

bench-real: setup-dev ## a real model through real tasks: hours, goes on where it was; writes docs/real.md
	@.venv/bin/python -m bench.real

bench-real-chat: setup-dev ## the same model through its chat template, GSM8K alone; writes docs/real.md
	@.venv/bin/python -m bench.real --chat

gpu-check: setup-dev ## the first minute on a GPU: what it is, whether it is right, how fast
	@.venv/bin/python -m bench.gpu --out "$$OUT/bench-gpu" check

bench-gpu: setup-dev ## the engine on one GPU in 12 minutes, on random weights of an 8B's shape, into OUT
	@.venv/bin/python -m bench.gpu --out "$$OUT/bench-gpu"

bench-gpu-model: setup-dev ## modelled minutes on 1 to 8 GPUs, from stated costs; writes docs/gpu.md
	@.venv/bin/python -m bench.gpu_model

bench-gpu-memory: setup-dev ## what fits into GPUs, by arithmetic alone; writes docs/gpu.md
	@.venv/bin/python -m bench.gpu_memory

bench-large: setup-dev ## a million requests without a model: time and memory of each phase, an hour
	@.venv/bin/python -m bench.large

bench-start: setup-dev ## where the seconds of a short command go, first and second time; writes docs/speed.md
	@.venv/bin/python -m bench.start

bench-scale: setup-dev ## core's batches replayed on 1 to 1,024 shards; writes docs/cluster.md's tables
	@.venv/bin/python -m bench.scale

census: setup-dev ## lm-eval's 13,000 tasks, each tried without its data: 20 minutes; writes docs/tasks.md
	@.venv/bin/python -m bench.census

lint: setup-dev ## ruff, its formatter in check mode, and mypy
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy

format: setup-dev ## repair what ruff can
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

lock: ## make requirements/*.lock again
	@$(PYTHON) requirements/lock.py

# The list: targets in the groups above, and the variables in force.
define list
/^## / { printf "%s%s\n", (groups++ ? "\n" : ""), substr($$0, 4) }
/^[a-z-]+:.* ## / {
    name = $$0; sub(/:.*/, "", name)
    text = $$0; sub(/.* ## /, "", text)
    printf "  make %-16s %s\n", name, text
}
END {
    printf "\nVariables\n "
    count = split("MODEL REVISION SUITE LIMIT OUT OFFLINE RUN LOCK IN IMAGE ENGINE WORKERS", names, " ")
    for (i = 1; i <= count; i++) printf " %s=%s", names[i], ENVIRON[names[i]]
    printf "\n"
}
endef
export list
