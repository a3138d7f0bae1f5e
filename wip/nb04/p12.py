import time, numpy as np, torch, random, sys
import ga_utils as ga
def T(): return time.process_time()
for name in sys.argv[1:]:
    t=T(); lm=ga.load_model(name)
    S={"letters":ga.tasks.mmlu(lm,n=150,seed=31),"knowledge":ga.tasks.knowledge(lm,n=80,seed=31),"KV 8":ga.tasks.kv_retrieval(lm,n_pairs=8,n=150,seed=31)}
    ev=lambda: {k:round(ga.evaluate(lm,v).accuracy,2) for k,v in S.items()}
    print("=====",name,lm,ev(),flush=True)
    layers=[m.layer for m in lm.mixers if m.kind!="attention"]
    for L in [None,*layers]:
        with ga.ablate_conv(lm,None if L is None else [L]): print("conv off",L,ev(),flush=True)
    ex=S["letters"]
    def opts(e): return [p for s in ga.segments(lm,e) for p in range(s.start,s.end)]
    def closing(e): return sorted(ga.positions(lm,e,"closing"))
    def quest(e): return list(range(max(s.end for s in ga.segments(lm,e))+2,ga.positions(lm,e,"last")[0]))
    if name!="tiny-llamba-onetap":
      for L in layers:
        hs=[ga.Head(L,h) for m in lm.mixers if m.layer==L and m.kind!="attention" for h in m.heads]
        print("where",L,{k:round(ga.patch(lm,hs,ex,ex,at,at,sources_in=ga.ablate_conv(lm,[L])).accuracy,2) for k,at in (("words",opts),("closing",closing),("question",quest),("last","last"))},flush=True)
    with ga.ablate(lm,ga.alive_heads(lm),at="closing"): print("all heads off at closing",ga.evaluate(lm,ex).accuracy)
    r=ga.find_roles(lm,ga.tasks.mmlu(lm,n=200,seed=1),ga.tasks.knowledge(lm,n=100,seed=1),progress=False)
    print(r); print(np.round(100*r.letters.drop,0)); print(np.round(r.aggregate_score,2),flush=True)
    rng=random.Random(0); tg={e:rng.choice([i for i in range(4) if i!=e.answer]) for e in ex}; TT=np.array([tg[e] for e in ex])
    c=sorted(ga.alive_heads(lm),key=lambda h:-r.aggregate_score[h.layer,h.head])[:6]
    for h in c:
        s=ga.steer(lm,[h],ex[:100],lambda e: ga.segments(lm,e)[tg[e]].closing); print("steer",h,(s.chosen==TT[:100]).mean().round(2),s.accuracy,flush=True)
    print("cpu",T()-t)
