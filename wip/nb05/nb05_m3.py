import time, random, ga_utils as ga, numpy as np, torch
from contextlib import ExitStack
from math import comb
teacher, student = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned"))
kv = ga.tasks.kv_retrieval(student, n_pairs=16, n=200, seed=1)
heads = ga.alive_heads(student)
def withh(team, ex):
    with ExitStack() as s:
        for h in team: s.enter_context(ga.replace_head(student, teacher, h.layer, h.head))
        return ga.evaluate(student, ex).accuracy
for n in (60,100):
    for k in (0,1,4,8,16,20):
        t=time.process_time(); w=time.time(); a=withh(heads[:k], kv[:n]); print(n,k,a,f"{time.process_time()-t:.2f} {time.time()-w:.2f}")
good={ga.Head(2,0),ga.Head(2,1)}
rng=random.Random(0)
t=time.process_time()
for k in (2,4,6,8,12,16,18):
    r=[]
    for i in range(50):
        team=rng.sample(heads,k); r.append((bool(good&set(team)), withh(team, kv[:60])))
    a=np.array([x for _,x in r]); b=np.array([g for g,_ in r])
    print(k, "hit", b.mean(), "expected", 1-comb(18,k)/comb(20,k), "hit acc", a[b].min() if b.any() else None, np.median(a[b]), "miss acc max", a[~b].max() if (~b).any() else None, "mean", a.mean(), "q", np.percentile(a,[5,50,95]), f"{time.process_time()-t:.0f}s", flush=True)
