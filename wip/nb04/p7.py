import time, numpy as np, torch, random, sys
import ga_utils as ga
from ga_utils.tasks.world import NOUNS
from ga_utils.training.scans import fast_scans
from ga_utils.ssm import scan_of, mixer_input
K="lamp" if "lamp" in NOUNS else NOUNS[0]
VALS=[str(x) for x in range(10,20)]
def prompt(rng,n):
    ks=rng.sample([x for x in NOUNS if x!=K],n); p=rng.randrange(n); ks[p]=K
    v=[rng.choice(VALS) for _ in range(n)]
    return "Dictionary:\n"+"".join(f"{k}: {x}\n" for k,x in zip(ks,v)), [VALS.index(x) for x in v], p
def collect(lm,n,count,seed):
    rng=random.Random(seed); d=[prompt(rng,n) for _ in range(count)]
    got={m.layer:[] for m in lm.mixers}; edits=[]
    for m in lm.mixers:
        edits.append(m.module.register_forward_pre_hook(lambda mod,a,k,m=m: got[m.layer].extend(scan_of(mod,h).state(range(m.n_heads)).flatten() for h in mixer_input(a,k)),with_kwargs=True))
    ids=torch.tensor(lm.tokenize([p for p,_,_ in d]))
    with torch.no_grad(), fast_scans():
        for i in range(0,count,50): lm.model(ids[i:i+50],use_cache=False)
    for e in edits: e.remove()
    return {k:torch.stack(v) for k,v in got.items()}, torch.tensor([v for _,v,_ in d]), torch.tensor([p for *_,p in d])
for name in ("tiny-mamba2-d4","tiny-mamba2","tiny-mamba2-d16"):
    lm=ga.load_model(name)
    for n in (8,16):
        t0=time.process_time(); s=time.time()
        torch.save(collect(lm,n,900,n),f"/tmp/nb04w/st_{name}_{n}.pt"); print(name,n,time.process_time()-t0,time.time()-s,flush=True)
