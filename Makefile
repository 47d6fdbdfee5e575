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
RUN = $(VENV)/bin/python
AS_DEMO = --ROOT=$(DEMO) --RECIPE=demo

.PHONY: env demo tables test bench soak lint clean-demo

env: $(VENV)/.requirements

# The stamp is written last, so that a broken installation is repeated.
$(VENV)/.requirements: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.requirements-test: requirements-test.txt $(VENV)/.requirements
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	touch $@

demo: $(VENV)/.requirements
	$(RUN) dataset/make_demo_data.py --ROOT=$(DEMO)
	$(RUN) dataset/check_data.py --ROOT=$(DEMO)
	$(RUN) dataset/extractPatch_seg_train.py --ROOT=$(DEMO)
	$(RUN) dataset/extractPatch_cls_train.py --ROOT=$(DEMO)
	$(RUN) dataset/extractPatch_cls_val_test.py --ROOT=$(DEMO) --SPLIT=Validation
	$(RUN) dataset/extractPatch_cls_val_test.py --ROOT=$(DEMO) --SPLIT=Testing
	$(RUN) dataset/list_seg.py --ROOT=$(DEMO)
	$(RUN) dataset/list_cls.py --ROOT=$(DEMO)
	$(RUN) train_CoarseSN.py $(AS_DEMO)
	$(RUN) generate_Coarse_mask.py $(AS_DEMO)
	$(RUN) train_MaskCN.py $(AS_DEMO)
	$(RUN) train_EnhancedSN.py $(AS_DEMO)
	$(RUN) eval_MaskCN.py $(AS_DEMO) --SPLIT=Testing
	$(RUN) eval_EnhancedSN.py $(AS_DEMO) --SPLIT=Testing --TTA=True --NETWORK=CoarseSN
	$(RUN) eval_EnhancedSN.py $(AS_DEMO) --SPLIT=Testing --TTA=True
	$(RUN) tests/check_demo.py $(DEMO)

tables: $(VENV)/.requirements
	$(RUN) reproduce_tables.py $(AS_DEMO) --TABLE=4,5,6,7 --FIGURE=4,5,6,7

# Two tests at a time, one core for each.
test: $(VENV)/.requirements-test
	$(RUN) -m ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses=2

bench: $(VENV)/.requirements
	$(RUN) benchmarks/bench.py
	$(RUN) benchmarks/scaling.py

soak: $(VENV)/.requirements-test
	KILLS=20 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/test_kill.py tests/test_resume.py tests/test_distributed.py
	FUZZ=10 OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses=2 $(wildcard tests/test_fuzz*.py)
	$(RUN) tests/soak.py --ROOT=$(DEMO)

lint: $(VENV)/.requirements-test
	$(RUN) -m ruff check .

clean-demo:
	rm -rf $(DEMO)
