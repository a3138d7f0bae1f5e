import time, numpy as np, torch, random
import ga_utils as ga
from dataclasses import replace
lm=ga.load_model("tiny-llamba"); llama=ga.load_model("tiny-llama")
ex=ga.tasks.mmlu(lm,n=100,seed=41)
rng=random.Random(0)
tg={e:rng.choice([i for i in range(4) if i!=e.answer]) for e in ex}
T=np.array([tg[e] for e in ex])
def spot(e,k):
    s=ga.segments(lm,e)[tg[e]]
    return {"closing":s.closing,"newline":[s.end],"after":[s.end+1],"words":list(range(s.start,s.end)),"all":list(range(s.start,s.end+2))}[k]
for k in ("closing","newline","after","words","all"):
    sc=ga.steer(lm,["L2H0"],ex,lambda e:spot(e,k))
    print("L2H0 steered",k,(sc.chosen==T).mean(),"right",sc.accuracy)
for h in ga.alive_heads(lm):
    sc=ga.steer(lm,[h],ex,lambda e:spot(e,"closing"))
    print(h,(sc.chosen==T).mean(),"right",sc.accuracy)
# shares of L2H0 row
def rows(L,H,e,null=False):
    s=ga.scan(lm,e.prompt,L)
    if null: s=replace(s,B=torch.ones_like(s.B),C=torch.ones_like(s.C))
    return ga.shares(s.matrix([H],first=len(s.x)-1))[0,0]
for null in (False,True):
    a=[]
    for e in ex:
        r=rows(2,0,e,null); sg=ga.segments(lm,e)
        cl=np.array([r[s.closing].sum() for s in sg]); wd=np.array([r[s.start:s.end].sum() for s in sg])
        o=[i for i in range(4) if i!=e.answer]
        last=max(s.end for s in sg)+2
        a.append([cl[e.answer],cl[o].mean(),wd[e.answer],wd[o].mean(), r[last:].sum(), cl[e.answer]/cl.sum(), cl[3]/cl.sum()])
    print("null" if null else "real",np.mean(a,0).round(3))
print(ga.find_roles(lm,ga.tasks.mmlu(lm,n=200,seed=1),ga.tasks.knowledge(lm,n=100,seed=1),progress=False))
