import time, numpy as np, torch
import ga_utils as ga
from ga_utils.heads import record_z
from ga_utils.models.batches import rows_of
from ga_utils.patch import _writer,_some
from ga_utils.scoring import Score, logprobs_of
from ga_utils.models.lm import UNLIMITED
from ga_utils.segments import positions
def patched(lm, heads, ex, at, ctx):
    to=[positions(lm,e,at) for e in ex]
    mixers=[m for m in lm.mixers if any(h.layer==m.layer for h in heads)]
    rows=rows_of(lm,ex); texts={r.index:r for r in rows}
    with ctx: rec=record_z(lm,mixers,[texts[i] for i in range(len(ex))])
    written={(m.layer,m.first):[z[p] for z,p in zip(pr,to)] for m,pr in zip(mixers,rec)}
    first={e:min(h,default=UNLIMITED) for e,h in zip(ex,to)}
    w=_writer(lm,heads,to,written)
    with lm.edited("x") as edit:
        edit.varies_from=first.get
        for m in mixers: m.hook_z(edit, lambda z,m=m: w(m,z))
        return Score.of(logprobs_of(lm,rows)[0],ex)
for name in ("tiny-zamba2",):
    lm=ga.load_model(name)
    ex=ga.tasks.mmlu(lm,n=200,seed=31)
    def close(e): return sorted(positions(lm,e,"closing"))
    def last(e): return positions(lm,e,"last")
    def opts(e):
        return [p for s in ga.segments(lm,e) for p in range(s.start,s.end) ]
    def quest(e):
        m=max(s.end for s in ga.segments(lm,e))+2
        return list(range(m,positions(lm,e,"last")[0]))
    for L in range(lm.n_layers):
        hs=[ga.Head(m.layer,h) for m in lm.mixers if m.layer==L and m.kind!="attention" for h in m.heads]
        out={}
        for nm,at in (("closing",close),("options' words",opts),("question",quest),("last",last)):
            out[nm]=patched(lm,hs,ex,at,ga.ablate_conv(lm,[L])).accuracy
        with ga.ablate_conv(lm,[L]): out["everywhere"]=ga.evaluate(lm,ex).accuracy
        print(name,L,out,flush=True)
