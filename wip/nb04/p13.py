import time, numpy as np, torch, random, sys
import ga_utils as ga
from ga_utils.tasks.world import NOUNS
def T(): return time.process_time()
TR=NOUNS[:4]; VALS=[str(x) for x in range(10,20)]
def make(rng,n):
    ks=rng.sample(NOUNS[4:],n-4)+list(TR); rng.shuffle(ks); v=[rng.choice(VALS) for _ in range(n)]
    return ks,v
def ex(ks,v,k):
    return ga.Example("Dictionary:\n"+"".join(f"{a}: {b}\n" for a,b in zip(ks,v))+f"Question: what is the value of {k}?\nAnswer:",tuple(f" {x}" for x in VALS),VALS.index(v[ks.index(k)]),"kv_probe")
def ridge(X,Y,Xt,lam):
    mu=X.mean(0); X=X-mu; Xt=Xt-mu; K=X@X.T
    return Xt@X.T@torch.linalg.solve(K+lam*K.diagonal().mean()*torch.eye(len(K)).to(K),Y-Y.mean(0))
for name,L in (("tiny-mamba2-d4",0),("tiny-mamba2",0),("tiny-mamba2-d16",0),("tiny-llamba",2)):
  lm=ga.load_model(name)
  for n in (8,16):
    t=T(); rng=random.Random(n); D=[make(rng,n) for _ in range(900)]
    E=[ex(ks,v,TR[i%4]) for i,(ks,v) in enumerate(D)]
    with ga.truncate(lm,L+1): S=ga.read_state(lm,E,L,lambda e:[3*n+2]).flatten(1)
    t1=T()-t
    P=torch.tensor([[ks.index(k) for k in TR] for ks,_ in D]); V=torch.tensor([[VALS.index(v[ks.index(k)]) for k in TR] for ks,v in D])
    VP=torch.tensor([[VALS.index(x) for x in v] for _,v in D])
    own=ga.evaluate(lm,E[600:]); pos=np.array([ks.index(TR[i%4]) for i,(ks,_) in enumerate(D)])[600:]
    print(name,n,S.shape,"read cpu",round(t1,1),"own",round(float(own.accuracy),2),[own.correct[pos//(n//4)==q].mean().round(2).item() for q in range(4)])
    oh=lambda y: torch.nn.functional.one_hot(y,10).float()
    for lam in (1e-3,1e-2):
        for ntr in (600,):
            tr=slice(0,ntr); te=slice(600,900)
            pk=[ridge(S[tr],oh(V[tr,j]),S[te],lam).argmax(-1)==V[te,j] for j in range(4)]
            sh=[ridge(S[tr],oh(V[tr,j][torch.randperm(ntr)]),S[te],lam).argmax(-1)==V[te,j] for j in range(4)]
            pp=(ridge(S[tr],oh(VP[tr]).flatten(1),S[te],lam).unflatten(1,(n,10)).argmax(-1)==VP[te]).float().mean(0)
            K=torch.stack(pk,1).float(); q=P[te]//(n//4)
            print("  ",lam,ntr,"key",K.mean().item().__round__(2),[K[q==i].mean().item().__round__(2) for i in range(4)],"shuf",torch.stack(sh).float().mean().item().__round__(2),"pos",pp.mean().item().__round__(2),[round(x,2) for x in pp.tolist()] if lam==1e-2 else "",flush=True)
