import time, numpy as np, torch
import ga_utils as ga
print(ga.__file__)
def t(f,*a,**k):
    s=time.time(); r=f(*a,**k); print(f"   {time.time()-s:.1f}s", flush=True); return r
for name in ("tiny-llamba","tiny-zamba2","tiny-mamba2"):
    lm=ga.load_model(name)
    print(lm, [ (m.layer,m.kind,m.n_heads,m.d_head) for m in lm.mixers])
    S={"letters":ga.tasks.mmlu(lm,n=200,seed=31),"knowledge":ga.tasks.knowledge(lm,n=200,seed=31),"KV 8":ga.tasks.kv_retrieval(lm,n_pairs=8,n=200,seed=31)}
    for k,v in S.items(): print(name,k,t(ga.evaluate,lm,v))
    heads=[h for h in ga.alive_heads(lm)]
    print("all heads off at closing:")
    with ga.ablate(lm,heads,at="closing"): print(ga.evaluate(lm,S["letters"]),ga.evaluate(lm,S["KV 8"]))
    found=ga.tasks.mmlu(lm,n=100,seed=32)
    sw=t(ga.sweep_heads,lm,found,progress=False)
    print(np.round(100*sw.drop).astype(int)); print(sw.top(4))
    for h in sw.top(3):
        with ga.ablate(lm,[h]): print(h,{k:round(ga.evaluate(lm,v).accuracy,2) for k,v in S.items()})
