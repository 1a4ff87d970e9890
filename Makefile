# Every target works in .venv, which the first one makes. ARGS is passed through, as in
# make fit ARGS="--trainer.max_epochs=2" or make test ARGS="-k boxes".
PYTHON ?= python3
ARGS ?=
DATA ?= ../shared/data

bin := .venv/bin
pip_install := $(bin)/pip --quiet --disable-pip-version-check install --constraint constraints.txt
# Two workers on two cores: one thread each, or they take turns. Each begins with half of the files, so
# that what a file's tests share is mostly made once.
pytest := OMP_NUM_THREADS=1 $(bin)/pytest --numprocesses 2 --dist worksteal
empty :=
space := $(empty) $(empty)
comma := ,
# The modules whose signatures are checked while these tests run.
shaped := geometry.boxes geometry.codecs pictures.cut pictures.kernels evaluation.metrics \
    evaluation.intervals
shaped_packages := $(subst $(space),$(comma),$(shaped:%=lightning_bbox.%))
shaped_tests := geometry/test_boxes geometry/test_codecs pictures/test_cut evaluation/test_metrics \
    evaluation/test_intervals

question := compare -c configs/compare/question.yaml --steps 400 \
    --data.draws_per_epoch=6400 --data.eval_draws=1000

.DEFAULT_GOAL := help
.PHONY: help fit compare test test-slow check benchmark benchmark-gpu install install-test docker clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

fit: install ## train the quick start
	$(bin)/lightning-bbox fit -c configs/quickstart.yaml $(ARGS)

# Reduced to 400 steps of smaller epochs: some 40 minutes on two cores.
compare: install ## replay the question on scenes and, where DATA holds bccd, on red cells
	$(bin)/lightning-bbox $(question) --name question-scenes --data.kind=polar $(ARGS)
	test ! -d $(DATA)/bccd || $(bin)/lightning-bbox $(question) --name question-bccd \
	    -c configs/bccd.yaml --data.root=$(DATA)/bccd $(ARGS)

# ARGS=--precision=32-true, or bf16-mixed, runs the tests as on a CPU of that kind.
# The signature pass leaves out `compile`: a checked function cannot be traced in one graph.
test: install-test ## run the tests and the examples, then the signature checks
	$(pytest) -m "not slow" $(ARGS)
	$(pytest) -m "not slow and not compile" \
	    --jaxtyping-packages=$(shaped_packages),beartype.beartype $(shaped_tests:%=tests/%.py)

test-slow: install-test ## run the tests that train, or start processes: as long again
	$(pytest) -m slow $(ARGS)

check: install-test ## lint, formatting, types, order of the rooms, docs, Dockerfile
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy lightning_bbox $(wildcard benchmarks/*.py)
	$(bin)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --quiet --site-dir build/site
	$(bin)/hadolint Dockerfile

# The minutes are those after which nothing new is begun.
benchmark: install-test ## measure speed on the CPU, and write benchmarks/README.md: 15 minutes
	$(bin)/python -m benchmarks --device cpu --minutes 13 $(ARGS)
	$(bin)/python -m benchmarks report

benchmark-gpu: install-test ## test and measure on CUDA: 8 minutes
	@$(bin)/python -c 'import torch; raise SystemExit(0 if torch.cuda.is_available() else 2)' || { \
	    echo 'make benchmark-gpu needs a CUDA device, and torch finds none here' >&2; exit 2; }
	$(bin)/pytest -m gpu $(ARGS)
	$(bin)/python -m benchmarks --device cuda --minutes 5
	$(bin)/python -m benchmarks report

install: .venv/installed ## install the package into .venv, editable
install-test: .venv/installed-test ## the same with the tools that test and check need

docker: ## build the image lightning-bbox
	docker build --tag lightning-bbox .

clean: ## remove caches and build outputs; keeps .venv and runs
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./.venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# pip, not python: where Debian's ensurepip is missing, venv fails after python is there.
$(bin)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo 'lightning_bbox needs Python 3.11 or newer; name one: make PYTHON=python3.12' >&2; \
	    exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | $(bin)/pip
	@echo 'Installing lightning_bbox into .venv; the first time takes some minutes.'
	@$(pip_install) --editable .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | $(bin)/pip
	@echo 'Installing lightning_bbox and its test tools into .venv; the first time takes some minutes.'
	@$(pip_install) --editable '.[test,docs]'
	@touch $@ .venv/installed
