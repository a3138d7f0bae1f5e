import os, sys, torch, random, math, time
from contextlib import redirect_stderr, nullcontext
from torch import nn
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
from ga_utils.training.grid_runs import *
from ga_utils.training.untrained import *
from ga_utils.training import untrained as U
from ga_utils.training.stages import *
from ga_utils.training.loop import *
torch.set_num_threads(1)
tok=world_tokenizer()
def build(seed,d=16,kh=1,beta=False,init=0.1,mlp=1,vh=4,dv=64,pt=False,zero=0,eye=0,emb=1.0,out=1.0,layers=4,dtb=0.5,width=128):
    config=Qwen3NextConfig(num_hidden_layers=layers,layer_types=["linear_attention"]*layers,hidden_size=width,intermediate_size=mlp,num_experts=0,
      linear_num_key_heads=kh,linear_num_value_heads=vh,linear_key_head_dim=d,linear_value_head_dim=dv,linear_conv_kernel_dim=4,
      num_attention_heads=4,num_key_value_heads=4,head_dim=32,max_position_embeddings=512,initializer_range=init,attn_implementation="eager",**U._vocabulary(tok))
    torch.manual_seed(seed)
    m=Qwen3NextForCausalLM(config)
    start_as_mamba2(m); relate_embeddings(m,tok); lengthen_memory(m)
    with torch.no_grad():
        if pt:
            for n_,l in m.named_modules():
                if isinstance(l,nn.Linear):
                    l.reset_parameters()
                    if n_.endswith(("out_proj","down_proj")): l.weight/=math.sqrt(layers)
        m.model.embed_tokens.weight*=emb
        for l in m.model.layers:
            a=l.linear_attn
            a.out_proj.weight*=out
            if zero: l.mlp.down_proj.weight.zero_()
            a.dt_bias.fill_(dtb)
            if beta:
                w=a.in_proj_ba.weight; n=vh//kh
                w.view(kh,2*n,-1)[:,:n]*=0.3; w.view(kh,2*n,-1)[:,:n,0]=-beta if beta!='spread' else torch.tensor([1.,0.,-0.7,-1.2]).view(kh,n); w.view(kh,2*n,-1)[:,n:,0]=0
                a.in_proj_qkvz.weight[:,0]=0
        if beta: m.model.embed_tokens.weight[:,0]=0.3*emb
    return m
VARIANTS=dict(base={}, kh4=dict(kh=4), kh4beta=dict(kh=4,beta=1.0), lr15=dict(lr=1.5e-3), lr1=dict(lr=1e-3,kh=4), emb3=dict(emb=3.,kh=4), out3=dict(out=.3,kh=4), long=dict(dtb=-2.,kh=4),mamba2=dict(mamba=1),mamba2noD=dict(mamba=1,noD=1),mamba2nobias=dict(mamba=1,nobias=1),
 beta1=dict(beta=1.0), out1=dict(out=.3), emb1=dict(emb=3.), long1=dict(dtb=-2.), lr6=dict(lr=6e-3), d64=dict(d=64),
 beta1m=dict(beta=1.0,mlp=128), mlp=dict(mlp=128), beta1o=dict(beta=1.0,out=.5), beta2=dict(beta=2.0),
 beta1opt=dict(beta=1.0,opt=1),beta1gn=dict(beta=1.0,gn=1),glagn=dict(gla=False,gn=1),baseopt=dict(opt=1),basegn=dict(gn=1),
 pt=dict(pt=1),ptbeta=dict(pt=1,beta=.5),ptglagn=dict(pt=1,gla=False,gn=1),ptkh4=dict(pt=1,kh=4),
 zo=dict(zero=1,out=2.),zobeta=dict(zero=1,out=2.,beta=1.0),zogla=dict(zero=1,out=2.,gla=False,gn=1),zokh4=dict(zero=1,out=2.,kh=4,beta=1.0),
 zob4=dict(zero=1,out=4.,beta=1.0), zob2m=dict(zero=1,out=2.,beta=1.0,mlp=128), zob3=dict(zero=1,out=2.,beta=2.0), zobl=dict(zero=1,out=2.,beta=1.0,lr=5e-3),
 gla=dict(gla=False), glanorm=dict(gla=True), glabeta=dict(gla=False,beta=1.0), kh4spread=dict(kh=4,beta="spread"), kh4b6=dict(kh=4,beta=1.0,lr=5e-3), kh2beta=dict(kh=2,beta=1.0),beta1d32=dict(d=32,beta=1.0),
 d32=dict(d=32,kh=4), h8=dict(kh=8,vh=8,dv=32), w256=dict(kh=4,width=256), l2=dict(kh=4,layers=2))
from unittest import mock
import transformers.models.qwen3_next.modeling_qwen3_next as mq
from ga_utils.models.llamba import ssd
def plain(norm):
    def scan(q,k,v,g,beta,**kw):
        r=v.shape[2]//k.shape[2]
        q,k=(x.float().repeat_interleave(r,2) for x in (q,k))
        if norm: q,k=mq.l2norm(q),mq.l2norm(k)
        y,_=ssd(v.float()*beta.float().unsqueeze(-1), g.float(), k, q, 64)
        return y.to(v.dtype),None
    return scan
def mynorm(self, h, gate=None):
    shape=h.shape; n=4
    h=(h.float()*torch.nn.functional.silu(gate.float())).view(-1,n*shape[-1])
    h=h*torch.rsqrt(h.pow(2).mean(-1,keepdim=True)+1e-6)
    return (h.view(shape)*self.weight).to(gate.dtype)
def opt(model,lr):
    ps={n:p for n,p in model.named_parameters() if p.requires_grad}
    proj=[n for n,p in ps.items() if ".layers." in n and "proj" in n.split(".")[-2] and p.ndim==2 and len(p)>1 and "ba" not in n.split(".")[-2] and "mlp" not in n]
    return [torch.optim.Muon([ps[n] for n in proj],lr=lr,weight_decay=0.05,adjust_lr_fn="match_rms_adamw"),torch.optim.AdamW([p for n,p in ps.items() if n not in proj],lr=lr,weight_decay=0.01,betas=(0.9,0.98))]
def go(name, steps=450, seed=1):
    v=dict(VARIANTS[name]); lr=v.pop("lr",3e-3)
    gn=v.pop("gn",0); myopt=v.pop("opt",0); patch2=mock.patch.object(mq.Qwen3NextRMSNormGated,"forward",mynorm) if gn else nullcontext()
    gla=v.pop("gla",None); patch=mock.patch.object(mq,"torch_chunk_gated_delta_rule",plain(gla)) if gla is not None else nullcontext()
    noD,nobias=v.pop("noD",0),v.pop("nobias",0)
    m=U.new_mamba2(tok,seed,16) if v.pop("mamba",0) else build(seed,**v)
    if noD or nobias:
        for l in m.backbone.layers:
            if noD: l.mixer.D.data.zero_(); l.mixer.D.requires_grad_(False)
            if nobias: l.mixer.conv1d.bias.data.zero_(); l.mixer.conv1d.bias.requires_grad_(False)
    rep=os.environ.get("REPEAT"); st=[replace(SSM_STAGES[0],steps=steps,rows=10)] if rep=="only" else [replace(SSM_STAGES[0],steps=int(rep or 0),rows=10),replace(SSM_STAGES[1],steps=steps-int(rep or 0),rows=10)]
    import shutil; shutil.rmtree(f"/tmp/p3/runs/{name}",ignore_errors=True)
    state=TrainingState(m,(opt if myopt else optimizers)(m,lr),Path(f"/tmp/p3/runs/{name}"))
    w=Writer(tok); t=time.time()
    with open(f"/tmp/p3/log-{name}.txt","w") as f, redirect_stderr(f), fast_scans(), patch, patch2, compiled(m):
        train(state,st,lr,f"grid-{seed}",w,cooldown=0)
    lines=open(f"/tmp/p3/log-{name}.txt").read().replace("\r","\n").splitlines()
    with open("/tmp/p3/results.txt","a") as f:
        print(name,os.environ.get("REPEAT"),int(time.time()-t),"s",file=f)
        for k in range(100,steps+1,100):
            c=[l for l in lines if f" {k}/{steps} " in l or f" {k-1}/{steps} " in l]
            if c: print("   ",c[-1][c[-1].find("repeat"):] if 0 else c[-1].split("step/s")[-1],k,file=f)
if __name__=="__main__":
    for n in sys.argv[2:]: go(n, int(sys.argv[1]))
