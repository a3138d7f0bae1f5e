export OMP_NUM_THREADS=1 GOMP_SPINCOUNT=1000 PYTHONPATH=/work/wt-nb04 HF_HUB_OFFLINE=1
cd /work/wt-nb04
PY=/work/main/.venv/bin/python
