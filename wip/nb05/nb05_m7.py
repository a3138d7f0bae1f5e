import time, random, ga_utils as ga, numpy as np, torch
from dataclasses import replace
teacher, student, z = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned","tiny-zamba2"))
kv=ga.tasks.kv_retrieval(z, n_pairs=16, n=100, seed=1)
def heads_of(lm, kind, layers=None): return [ga.Head(m.layer,h) for m in lm.mixers if m.kind==kind and (layers is None or m.layer in layers) for h in m.heads]
draw=random.Random(0)
def other(e):
    n=len(e.choices); lines=e.prompt.split("\n"); keys=[l.split(":")[0] for l in lines[1:n+1]]
    vals=list(e.choices)
    while True:
        sh=draw.sample(vals,n); i=draw.randrange(n)
        if i!=e.answer and vals.index(sh[i]) not in (i,e.answer): break
    new=[lines[0]]+[f"{k}:{v}" for k,v in zip(keys,sh)]+[lines[n+1].replace(f"of {keys[e.answer]}?",f"of {keys[i]}?")]+lines[n+2:]
    return replace(e,prompt="\n".join(new),choices=tuple(vals),answer=vals.index(sh[i])), i, vals.index(sh[i])
src,q,v=zip(*[other(e) for e in kv]); q=np.array(q); v=np.array(v)
print(src[0].prompt, src[0].choices[src[0].answer]); print("clean", ga.evaluate(z,src), ga.evaluate(teacher,src))
def p(lm,hs):
    s=ga.patch(lm,hs,kv,src); return "question",(s.chosen==q).mean(),"value",(s.chosen==v).mean(),"own", s.accuracy
for l in (0,1,2,3): print("zamba mamba layer",l,p(z,heads_of(z,"mamba2",[l])), flush=True)
for l in (1,3): print("zamba att layer",l,p(z,heads_of(z,"attention",[l])), flush=True)
with ga.replace_layer(student,teacher,2):
    for l in (0,1,3,4): print("pt mamba layer",l,p(student,heads_of(student,"mamba2",[l])), flush=True)
    print("pt att", p(student,heads_of(student,"attention")))
for l in range(5): print("teacher layer",l,p(teacher,heads_of(teacher,"attention",[l])))
