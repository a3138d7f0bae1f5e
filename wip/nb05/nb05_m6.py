import time, random, ga_utils as ga, numpy as np, torch
from dataclasses import replace
from contextlib import ExitStack
teacher, student, z = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned","tiny-zamba2"))
kv=ga.tasks.kv_retrieval(z, n_pairs=16, n=100, seed=1)
def heads_of(lm, kind, layers=None): return [ga.Head(m.layer,h) for m in lm.mixers if m.kind==kind and (layers is None or m.layer in layers) for h in m.heads]
print(repr(kv[0].prompt), kv[0].answer)
draw=random.Random(0)
def other(e, i):
    keys=[l.split(":")[0] for l in e.prompt.split("\n")[1:17]]
    assert f"of {keys[e.answer]}?" in e.prompt
    return replace(e, prompt=e.prompt.replace(f"of {keys[e.answer]}?", f"of {keys[i]}?"), answer=i)
t=np.array([draw.choice([i for i in range(16) if i!=q.answer]) for q in kv])
src=[other(e,int(i)) for e,i in zip(kv,t)]
print("clean on src", ga.evaluate(z,src))
def p(lm,hs):
    s=ga.patch(lm,hs,kv,src); return (s.chosen==t).mean(), s.accuracy
for l in (0,1,2,3): print("zamba mamba layer",l,p(z,heads_of(z,"mamba2",[l])), flush=True)
for l in (1,3): print("zamba att layer",l,p(z,heads_of(z,"attention",[l])), flush=True)
with ga.replace_layer(student,teacher,2):
    for l in (0,1,3,4): print("pt mamba layer",l,p(student,heads_of(student,"mamba2",[l])), flush=True)
    print("pt att", p(student,heads_of(student,"attention")))
    for h in heads_of(student,"mamba2",[0]): print("pt",h,p(student,[h]))
# letters with greedy etc.
heads=ga.alive_heads(student)
let=ga.tasks.mmlu(student,n=200,seed=1); kv200=ga.tasks.kv_retrieval(student,n_pairs=16,n=200,seed=1)
def withh(team, ex):
    with ExitStack() as s:
        for h in team: s.enter_context(ga.replace_head(student, teacher, h.layer, h.head))
        return ga.evaluate(student, ex)
cl=ga.tasks.mmlu(student,n=80,seed=31)
alone={h:withh([h],cl).accuracy for h in heads}; print(alone)
f,s2=sorted(alone,key=alone.get,reverse=True)[:2]
j={h:withh([f,h],cl).accuracy for h in heads if h!=f}; print(f,s2,j)
team=[f,max(j,key=j.get)]
j3={h:withh(team+[h],cl).accuracy for h in heads if h not in team}; print("3rd",j3)
for tm in ([f],[f,s2],team): print(tm, withh(tm,let), withh(tm,kv200))
