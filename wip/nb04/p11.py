import sys; sys.path.insert(0,"/tmp/nb04w")
import glob, time
from p9 import pairs
import numpy as np, torch
import ga_utils as ga
from transformers import AutoModelForCausalLM, AutoTokenizer
base=ga.load_model("tiny-mamba2")
for path in sorted(glob.glob("/tmp/grid/runs/*/model")):
    lm=ga.wrap(AutoModelForCausalLM.from_pretrained(path),base.tokenizer)
    print(path, ga.evaluate(lm,ga.tasks.mmlu(lm,n=200,seed=31)))
    for n in (8,):
        P=pairs(n,64,3); ex=[a for a,*_ in P]; so=[b for _,b,*_ in P]; end={a:[e] for a,_,e,_ in P}|{b:[e] for _,b,e,_ in P}
        print(n,ga.evaluate(lm,ex))
        for L in range(lm.n_layers):
            hs=[h for h in ga.alive_heads(lm) if h.layer==L]
            print(L,{c:(ga.patch_state(lm,hs,ex,so,end.get,cache=c).chosen==n).mean().round(2) for c in ("state","conv")},flush=True)
    S={"letters":ga.tasks.mmlu(lm,n=150,seed=31),"knowledge":ga.tasks.knowledge(lm,n=80,seed=31),"KV 8":ga.tasks.kv_retrieval(lm,n_pairs=8,n=150,seed=31)}
    for L in (None,0,1,2,3):
        with ga.ablate_conv(lm,None if L is None else [L]): print("conv off",L,{k:round(ga.evaluate(lm,v).accuracy,2) for k,v in S.items()},flush=True)
