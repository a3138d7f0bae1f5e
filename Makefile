PY := .venv/bin/python
COLAB := .venv-colab/bin/python
BENCH := .venv-bench/bin/python
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: env lab course refresh test test-colab bench
env: .venv/.ready          ## make .venv; nothing to do when it is up to date
.venv/.ready: pyproject.toml constraints.txt
	python3 -m venv .venv && $(PY) -m pip install -q -c constraints.txt -e ".[test]" && touch $@

lab: env                   ## open the notebooks
	$(PY) -m jupyterlab notebooks

course: env                ## run copies of all notebooks; notebooks and HTML in build/
	$(PY) notebooks/build.py run

refresh: env               ## rerun the notebooks in place: their committed outputs
	$(PY) notebooks/build.py refresh

# Two processes of two threads each, on two cores, would wait for each other most of the time.
test test-colab: export OMP_NUM_THREADS = 1
test: env                  ## unit tests, then every notebook with nbval
	$(PY) $(PYTEST)

test-colab: .venv-colab/.ready   ## the same, with the versions of a stock Colab runtime
	$(COLAB) $(PYTEST)
.venv-colab/.ready: pyproject.toml tests/colab.txt
	python3 -m venv .venv-colab && $(COLAB) -m pip install -q -c tests/colab.txt -e ".[test]" && touch $@

bench: .venv-bench/.ready  ## times and memory side by side with the peers; build/bench.json and a figure
	$(BENCH) tests/bench/sweeps.py && $(BENCH) tests/bench/growth.py && $(BENCH) tests/bench/implicit_attention.py
.venv-bench/.ready: pyproject.toml constraints.txt tests/bench/requirements.txt
	python3 -m venv .venv-bench && $(BENCH) -m pip install -q -c constraints.txt -e . -r tests/bench/requirements.txt && touch $@
