import time, random, ga_utils as ga, numpy as np, torch
from contextlib import ExitStack
teacher, student = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned"))
kv=ga.tasks.kv_retrieval(student, n_pairs=16, n=100, seed=1); let=ga.tasks.mmlu(student,n=100,seed=1)
with ga.replace_head(student,teacher,2,1):
    print("head", ga.evaluate(student,kv), ga.evaluate(student,let))
    for ls in ([2],[0],None):
        with ga.ablate_conv(student,ls): print("conv off",ls, ga.evaluate(student,kv), ga.evaluate(student,let))
    with ga.ablate(student,[ga.Head(2,h) for h in range(4)]): print("all of layer's SSM heads off", ga.evaluate(student,kv), ga.evaluate(student,let))
heads=ga.alive_heads(student); rng=random.Random(1)
def withh(team, ex):
    with ExitStack() as s:
        for h in team: s.enter_context(ga.replace_head(student, teacher, h.layer, h.head))
        return ga.evaluate(student, ex).accuracy
for i in range(12):
    out=rng.sample(heads,2); print(out, withh([h for h in heads if h not in out], kv[:60]))
ranked=[ga.Head(2,1),ga.Head(2,0)]
# KV on letters rank
ex=ga.tasks.kv_retrieval(student, n_pairs=16, n=100, seed=31)
ch={h:withh([h],ex) for h in heads}; rk=sorted(ch,key=ch.get,reverse=True); print(ch)
for k in (0,1,2,4,8,12,16,20): print(k, withh(rk[:k],kv), withh(rk[:k],let))
