import torch, numpy as np, sys
def ridge(X,Y,Xt,lam):
    mu=X.mean(0); X=X-mu; Xt=Xt-mu
    K=X@X.T; l=lam*K.diagonal().mean()
    return Xt@X.T@torch.linalg.solve(K+l*torch.eye(len(K)).to(K),Y-Y.mean(0))
for name in ("tiny-mamba2-d4","tiny-mamba2","tiny-mamba2-d16"):
  for n in (8,16):
    S,V,P=torch.load(f"/tmp/nb04w/st_{name}_{n}.pt")
    for L in range(4):
        X=S[L].float(); tr,te=slice(0,600),slice(600,900)
        best=None
        for lam in (1e-4,1e-3,1e-2,1e-1):
            Y=torch.stack([torch.nn.functional.one_hot(V[tr,p],10).float() for p in range(n)],1).flatten(1)
            pr=ridge(X[tr],Y,X[te],lam).unflatten(1,(n,10)).argmax(-1)
            a=(pr==V[te]).float().mean(0).numpy()
            K=V.gather(1,P[:,None])[:,0]
            pk=ridge(X[tr],torch.nn.functional.one_hot(K[tr],10).float(),X[te],lam).argmax(-1)
            k=(pk==K[te]).float()
            bypos=[k[P[te]//(n//4)==q].mean().item() for q in range(4)]
            r=(a.mean(),lam,a,k.mean().item(),bypos)
            if best is None or r[0]>best[0]: best=r
            if best is r or True: bk=max(bk,(r[3],lam,bypos)) if lam>1e-4 else (r[3],lam,bypos)
        print(name,n,L,"pos",round(float(best[0]),2),best[1],best[2].round(2).tolist(),"| key",round(bk[0],2),bk[1],np.round(bk[2],2).tolist(),flush=True)
