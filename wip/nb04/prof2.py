import time, torch
torch.set_grad_enabled(False); print(torch.get_num_threads(), torch.get_num_interop_threads())
W=torch.randn(600,128); h=torch.randn(37,128)
for n in (30,300,3000):
    t=time.process_time(); w=time.time()
    for _ in range(n): h@W.T
    print(n,(time.process_time()-t)/n*1000,"ms cpu",(time.time()-w)/n*1000)
import ga_utils as ga
from ga_utils.ssm import scan_of, conv_inputs
lm=ga.load_model("tiny-mamba2"); m=lm.mixers[0].module
print(torch.get_num_threads())
for n in (30,300):
    t=time.process_time(); w=time.time()
    for _ in range(n): scan_of(m,h)
    print("scan_of",n,(time.process_time()-t)/n*1000,"ms cpu",(time.time()-w)/n*1000)
