import time, numpy as np, torch, random
import ga_utils as ga
from ga_utils.tasks.world import NOUNS, NUMBERS
def pairs(n,count,seed):
    rng=random.Random(seed); out=[]
    for i in range(count):
        ks=rng.sample(NOUNS,n); vs=rng.sample(NUMBERS,n+1); p=i%n
        d=lambda v:"Dictionary:\n"+"".join(f"{k}: {x}\n" for k,x in zip(ks,v))
        q=f"Question: what is the value of {ks[p]}?\nAnswer:"
        vs2=list(vs[:n]); vs2[p]=vs[n]
        ch=tuple(f" {v}" for v in vs)
        out.append((ga.Example(d(vs[:n])+q,ch,p,"kv"),ga.Example(d(vs2)+q,ch,n,"kv"),3*n+2,p))
    return out
if __name__=="__main__":
  for name in ("tiny-mamba2-d4","tiny-mamba2","tiny-mamba2-d16","tiny-llamba"):
    lm=ga.load_model(name); n=8
    P=pairs(n,80,3); ex=[a for a,*_ in P]; so=[b for _,b,*_ in P]; end={a:[e] for a,_,e,_ in P}|{b:[e] for _,b,e,_ in P}; pos=np.array([p for *_,p in P])
    toks=[lm.tokenizer.decode([i]) for i in lm.tokenize([ex[0].prompt])[0]]; print(toks[3*n:3*n+4])
    print(name,"base",ga.evaluate(lm,ex),ga.evaluate(lm,so))
    allh=ga.alive_heads(lm)
    t0=time.process_time()
    for what,hs in [("all",allh)]+[(f"layer {L}",[h for h in allh if h.layer==L]) for L in range(lm.n_layers)]:
        row={}
        for c in ("state","conv","both"):
            s=ga.patch_state(lm,hs,ex,so,end.get,cache=c)
            f=s.chosen==n
            row[c]=(round(f.mean(),2),[round(f[pos==p].mean(),1) for p in range(n)])
        print("  ",what,row,flush=True)
    print("cpu",time.process_time()-t0)
