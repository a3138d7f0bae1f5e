import time, numpy as np, torch, random
import ga_utils as ga
for name in ("tiny-llamba",):
    lm=ga.load_model(name); s=time.time()
    try:
        r=ga.find_roles(lm,ga.tasks.mmlu(lm,n=200,seed=1),ga.tasks.knowledge(lm,n=100,seed=1),progress=False)
        print(name,r,f"{time.time()-s:.0f}s",flush=True)
    except Exception as e: print(repr(e))
