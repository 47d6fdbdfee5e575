# make demo   environment, small synthetic data set, stages 1 to 6 with the real networks, tables
# make test   environment, test suite
# make tables Tables IV to VII and Figures 4 to 7 of the paper on the demo's data, after make demo
# make bench  ours against a plain version of the released code's way, in time and memory
# make soak   what make test has no time for: twenty random kills of every script, ten times the fuzzing, and an
#             hour of training in which memory, handles and speed stay; after make demo
# make lint   style
# VENV=folder chooses another place for the environment, PYTHON=python3.12 another interpreter.

VENV ?= .venv
PYTHON ?= python3
DEMO ?= demo
RUN = "$(VENV)/bin/python"
AT_DEMO = --ROOT="$(DEMO)"
AS_DEMO = $(AT_DEMO) --RECIPE=demo

# A space within a name would make two targets of one.
SPACE := $(subst ,, )
INSTALLED = $(subst $(SPACE),\$(SPACE),$(VENV))/.requirements

.PHONY: env demo tables test bench soak lint clean-demo

env: $(INSTALLED)

# The stamp is written last, so that a broken installation is repeated.
$(INSTALLED): requirements.txt
	$(PYTHON) -m venv "$(VENV)"
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch "$@"

$(INSTALLED)-test: requirements-test.txt $(wildcard companions/*/requirements.txt) $(INSTALLED)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt -r companions/weak_labels/requirements.txt
	$(RUN) -m pip install --quiet --disable-pip-version-check -r companions/label_transfer/requirements.txt || \
		echo "pydensecrf2 cannot be compiled here: the tests of the dense CRF will be skipped"
	touch "$@"

demo: $(INSTALLED)
	$(RUN) dataset/make_demo_data.py $(AT_DEMO)
	$(RUN) dataset/check_data.py $(AT_DEMO)
	$(RUN) dataset/extractPatch_seg_train.py $(AT_DEMO)
	$(RUN) dataset/extractPatch_cls_train.py $(AT_DEMO)
	$(RUN) dataset/extractPatch_cls_val_test.py $(AT_DEMO) --SPLIT=Validation
	$(RUN) dataset/extractPatch_cls_val_test.py $(AT_DEMO) --SPLIT=Testing
	$(RUN) dataset/list_seg.py $(AT_DEMO)
	$(RUN) dataset/list_cls.py $(AT_DEMO)
	$(RUN) train_CoarseSN.py $(AS_DEMO)
	$(RUN) generate_Coarse_mask.py $(AS_DEMO)
	$(RUN) train_MaskCN.py $(AS_DEMO)
	$(RUN) train_EnhancedSN.py $(AS_DEMO)
	$(RUN) eval_MaskCN.py $(AS_DEMO) --SPLIT=Testing
	$(RUN) eval_EnhancedSN.py $(AS_DEMO) --SPLIT=Testing --TTA=True --NETWORK=CoarseSN
	$(RUN) eval_EnhancedSN.py $(AS_DEMO) --SPLIT=Testing --TTA=True
	$(RUN) tests/check_demo.py "$(DEMO)"

tables: $(INSTALLED)
	$(RUN) reproduce_tables.py $(AS_DEMO) --TABLE=4,5,6,7 --FIGURE=4,5,6,7

# Two tests at a time, one core for each.
test: $(INSTALLED)-test
	$(RUN) -m ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses=2

bench: $(INSTALLED)
	$(RUN) benchmarks/bench.py
	$(RUN) benchmarks/scaling.py

soak: $(INSTALLED)-test
	KILLS=20 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/test_kill.py tests/test_resume.py tests/test_distributed.py
	FUZZ=10 OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses=2 $(wildcard tests/test_fuzz*.py)
	$(RUN) tests/soak.py $(AT_DEMO)

lint: $(INSTALLED)-test
	$(RUN) -m ruff check .

clean-demo:
	rm -rf "$(DEMO)"
