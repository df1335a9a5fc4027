# `make demo` and `make test` need Python 3.11 or newer and make; they install everything else into .venv.

PYTHON ?= python3
OUT := outputs/spoken_shapes

.PHONY: demo test

demo: .venv/demo.installed $(OUT)/corpus/dataset_dict.json
	.venv/bin/python train.py configs/spoken_shapes.yaml
	.venv/bin/sir search $(OUT)/model $(OUT)/corpus --score-rule sim+sic --sheet $(OUT)/search.png \
		--caption random --caption random --caption random --caption random
	@echo
	@echo "Look at   $(OUT)/search.png       what four queries found, in voices that the model never heard"
	@echo "          $(OUT)/curves.png       how the model learned"
	@echo "          $(OUT)/evaluation.json  how well it finds the pictures of the test split"
	@echo "          $(OUT)/model            the model, to load with from_pretrained"

test: .venv/test.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 .venv/bin/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder  # long files are not last

$(OUT)/corpus/dataset_dict.json: | .venv/demo.installed
	.venv/bin/sir corpus build spoken_shapes --out $(OUT)/corpus

# The stamp's name is the extra that is installed.
.venv/%.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --no-compile --constraint constraints.txt --editable ".[$*]"  # imports compile
	touch $@
