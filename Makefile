# The commands of the project. `make nightly` and `make test` install what they need and say what they cannot install.
#
#   make nightly [INPUT=simulator|scientific:PATH|beauty:PATH|minionerec:PATH|logs:PATH] [DAY=2026-01-05]
#                [JUDGE=embedding|vllm]
#   make test

INPUT ?=
DAY ?=
JUDGE ?=
SETUP := bash requirements/setup.sh

.PHONY: nightly test test-fast lint env judge-env browser lock table-docs clean help

help:
	@sed -n '2,6s/^# \{0,1\}//p' Makefile

nightly: java env $(if $(filter vllm,$(JUDGE)),judge-env)
	@.venv/bin/sgrec nightly $(if $(INPUT),--input $(INPUT)) $(if $(DAY),--day $(DAY)) $(if $(JUDGE),--judge $(JUDGE))

# Three workers on two cores: a quarter of the time tests wait for schedulers, JVMs and servers.
test: java env judge-env browser lint
	@.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# What needs no Spark, Airflow, vLLM, browser, night or training: two minutes on two quiet cores.
test-fast: env
	@.venv/bin/python -m pytest -n 2 --dist loadfile -q -m "not (spark or airflow or vllm or browser or night or slow)"

lint: env
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

.PHONY: java
java:
	@$(SETUP) java

env:
	@$(SETUP) main

judge-env:
	@$(SETUP) judge

browser:
	@$(SETUP) browser

# Benchmarks: DATA=PATH names the folder of the public sets, SHORT=1 is a check in minutes; full runs take hours on two
# cores. Results go to benchmarks/results/, those of short runs beside them under a name of their own.
DATA ?= ../shared/data
BENCH = .venv/bin/python -m
OPTIONS = $(if $(SHORT),--short) --data $(DATA)
# DEVICE=cuda for decode and training, SIZE=card for a model that fills a card; a2po and generator take a GPU where
# there is one.
DEVICE ?= cpu
SIZE ?= default
.PHONY: public-formats bench-a2po bench-decode bench-gate bench-generator bench-ingest bench-judge bench-lake bench-metrics \
	bench-night bench-oncall bench-pages bench-tokenizers bench-training bench-updates
bench-a2po: env
	@$(BENCH) benchmarks.a2po --world scientific $(OPTIONS)
	@$(BENCH) benchmarks.a2po --world simulator $(OPTIONS)
bench-decode: env
	@$(BENCH) benchmarks.decode $(OPTIONS) --device $(DEVICE)
# In pieces: with MINUTES=18 it stops after as many and exits with 75; called again it goes on.
bench-gate: env
	@$(BENCH) benchmarks.gate $(if $(SHORT),--short) $(if $(MINUTES),--minutes $(MINUTES))
bench-generator: env
	@$(BENCH) benchmarks.generator --set scientific $(OPTIONS)
	@$(BENCH) benchmarks.generator --set beauty $(OPTIONS)
# In pieces, as bench-gate.
bench-ingest: java env
	@$(BENCH) benchmarks.ingest $(if $(SHORT),--short) $(if $(MINUTES),--minutes $(MINUTES))
bench-judge: env judge-env
	@.venv-judge/bin/python -m benchmarks.judge $(OPTIONS)
	@$(BENCH) benchmarks.judge_training $(if $(SHORT),--short)
bench-metrics: env
	@$(BENCH) benchmarks.night_metrics
bench-night: java env
	@$(BENCH) benchmarks.night $(if $(SHORT),--short)
# In pieces, as bench-gate. PART=all for the faults that are held out as well.
bench-oncall: java env
	@$(BENCH) benchmarks.oncall $(if $(SHORT),--short) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(PART),--part $(PART))
bench-pages: env
	@$(BENCH) benchmarks.pages $(if $(SHORT),--short)
bench-lake: env
	@$(BENCH) benchmarks.lake $(if $(SHORT),--short)
bench-tokenizers: env
	@$(BENCH) benchmarks.tokenizers $(OPTIONS)
bench-training: env
	@$(BENCH) benchmarks.training $(OPTIONS) --device $(DEVICE) --size $(SIZE)
bench-updates: env
	@$(BENCH) benchmarks.updates $(if $(SHORT),--short)

# A whole night on each of four public logs in their published layouts; one of them is in `make test`.
public-formats: java env
	@SGREC_PUBLIC_FORMATS=all .venv/bin/python -m pytest -q tests/night/test_first_night.py tests/logs/test_public_formats.py

# docs/tables.md from the contracts
table-docs: env
	@.venv/bin/python -m sgrec_core.quality.table_docs

# New lock files after a change of the dependencies. `+cpu` is cut: a machine with a CPU build of torch at hand
# (pip's find-links) takes it, any other takes the build of its package index with what that needs.
COMPILE = UV_FIND_LINKS=$${UV_FIND_LINKS:-$$PIP_FIND_LINKS} .venv/bin/uv pip compile --quiet --no-emit-find-links \
	--python-version 3.11 --custom-compile-command "make lock"
lock: env
	@# The pin of a public torch would be kept, and bring the libraries of its CUDA build into the lock.
	@sed -i '/^torch==/d' requirements/main.lock requirements/judge.lock
	@$(COMPILE) pyproject.toml --group dev -o requirements/main.lock
	@$(COMPILE) requirements/judge.in --overrides requirements/judge-overrides.txt -o requirements/judge.lock
	@sed -i 's/+cpu//' requirements/main.lock requirements/judge.lock

clean:
	rm -rf .venv .venv-judge .pytest_cache .mypy_cache .ruff_cache
