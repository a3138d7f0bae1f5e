import time, random, ga_utils as ga, numpy as np, torch
from contextlib import ExitStack, nullcontext
teacher, student, z = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned","tiny-zamba2"))
T = {"know": ga.tasks.knowledge(z, n=200, seed=1), "let": ga.tasks.mmlu(z, n=200, seed=1), "kv": ga.tasks.kv_retrieval(z, n_pairs=16, n=200, seed=1)}
def sc(lm): return {k: round(ga.evaluate(lm,x).accuracy,3) for k,x in T.items()}
def heads_of(lm, kind, layers=None): return [ga.Head(m.layer,h) for m in lm.mixers if m.kind==kind and (layers is None or m.layer in layers) for h in m.heads]
def cond(lm, hs, **w):
    with ga.ablate(lm, hs, **w): return sc(lm)
t=time.process_time()
print("zamba whole", sc(z), time.process_time()-t)
for kind in ("attention","mamba2"):
    hs=heads_of(z,kind)
    for name,w in (("everywhere",{}),("last",{"at":"last"}),("but last",{"but":"last"})):
        print("zamba",kind,name,cond(z,hs,**w), f"{time.process_time()-t:.0f}", flush=True)
for layers in ([0],[2],[0,2],[1],[3],[1,3]):
    print("zamba mamba2 layers",layers,"last",cond(z,heads_of(z,"mamba2",layers),at="last"), flush=True)
for l in (1,3):
    print("zamba attention layer",l,"last",cond(z,heads_of(z,"attention",[l]),at="last"),"everywhere",cond(z,heads_of(z,"attention",[l])), flush=True)
for h in heads_of(z,"attention"): print("zamba", h, "last", cond(z,[h],at="last"), flush=True)
with ga.replace_layer(student, teacher, 2):
    print("put together", sc(student))
    for kind in ("attention","mamba2"):
        hs=heads_of(student,kind)
        for name,w in (("everywhere",{}),("last",{"at":"last"}),("but last",{"but":"last"})):
            print("pt",kind,name,cond(student,hs,**w), flush=True)
    for layers in ([0],[1],[0,1],[3],[4],[3,4]):
        print("pt mamba layers",layers,"last",cond(student,heads_of(student,"mamba2",layers),at="last"), flush=True)
    with ga.ablate_conv(student, [0,1,3,4]): print("pt conv off", sc(student))
