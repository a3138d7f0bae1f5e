import time, numpy as np, torch, random
import ga_utils as ga
from ga_utils.tasks.world import NOUNS
def c(msg, t0): print(msg, f"cpu {time.process_time()-t0:.1f}s", flush=True)
keys=random.Random(5).sample(NOUNS,16)
def dic(rng,n,vals):
    v=[rng.choice(vals) for _ in range(n)]
    return v, ga.Example("Dictionary:\n"+"".join(f"{k}: {x}\n" for k,x in zip(keys,v)),(" 1"," 2"),0,"probe")
VALS=[str(x) for x in range(10,20)]
def data(n,count,seed):
    rng=random.Random(seed); d=[dic(rng,n,VALS) for _ in range(count)]
    Y=torch.tensor([[VALS.index(x) for x in v] for v,_ in d]); return Y,[e for _,e in d]
def ridge(X,Y,Xt,lam):
    mu=X.mean(0); X=X-mu; Xt=Xt-mu
    K=X@X.T; lam=lam*K.diagonal().mean()
    a=torch.linalg.solve(K+lam*torch.eye(len(K)),Y-Y.mean(0))
    return Xt@X.T@a+Y.mean(0)
def acc(lm,layer,n,ntrain,ntest,seed,lam=0.01,shuffle=False):
    Y,ex=data(n,ntrain+ntest,seed)
    X=ga.read_state(lm,ex,layer,lambda e:[len(lm.tokenize([e.prompt])[0])-1]).flatten(1).double()
    res={}
    for lam in (1e-3,1e-2,1e-1):
        out=[]
        for p in range(n):
            T=torch.nn.functional.one_hot(Y[:ntrain,p],10).double()
            if shuffle: T=T[torch.randperm(ntrain)]
            pr=ridge(X[:ntrain],T,X[ntrain:],lam).argmax(1)
            out.append((pr==Y[ntrain:,p]).float().mean().item())
        res[lam]=np.round(out,2)
    return res
for name in ("tiny-mamba2","tiny-mamba2-d4","tiny-mamba2-d16"):
    lm=ga.load_model(name)
    for layer in range(4):
        t0=time.process_time()
        r=acc(lm,layer,8,200,100,1)
        print(name,layer,{k:(v.tolist(),v.mean().round(2)) for k,v in r.items()}); c("",t0)
