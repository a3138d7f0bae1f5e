import time, torch, ga_utils as ga, cProfile, pstats
from ga_utils.ssm import scan_of, conv_inputs
lm=ga.load_model("tiny-mamba2"); m=lm.mixers[0].module
h=torch.randn(37,128)
torch.set_grad_enabled(False)
for f,nm in ((lambda: conv_inputs(m,h),"conv_inputs"),(lambda: scan_of(m,h),"scan_of"),(lambda: scan_of(m,h).state(range(4)),"state")):
    f(); t=time.process_time()
    for _ in range(30): f()
    print(nm,(time.process_time()-t)/30*1000,"ms")
ids=torch.tensor(lm.tokenize(["Dictionary:\n"+"door: 43\n"*8]*50))
t=time.process_time(); lm.model(ids,use_cache=False); print("50 rows fwd",time.process_time()-t)
from ga_utils.training.scans import fast_scans
with fast_scans():
    t=time.process_time(); lm.model(ids,use_cache=False); print("50 rows fwd fast",time.process_time()-t)
