import time, numpy as np, torch, random
import ga_utils as ga
from ga_utils.segments import segments
# probe feasibility
def at_end(lm):
    def f(e): return [max(s.end for s in segments(lm,e))]
    return f
for name in ("tiny-mamba2-d4","tiny-mamba2","tiny-mamba2-d16"):
    lm=ga.load_model(name); s=time.time()
    ex=ga.tasks.kv_retrieval(lm,n_pairs=8,n=100,seed=51)
    H=ga.read_state(lm,ex,1,at_end(lm)); print(name,H.shape,f"{time.time()-s:.1f}s",flush=True)
    seg=segments(lm,ex[0]); print(seg, ex[0].prompt.split("\n")[:3], len(lm.tokenize([ex[0].prompt])[0]))
