import faulthandler; faulthandler.dump_traceback_later(60,exit=True)
import sys; sys.path.insert(0,"/tmp/nb04w")
from p9 import *
import cProfile,pstats
lm=ga.load_model("tiny-mamba2"); n=8
P=pairs(n,16,3); ex=[a for a,*_ in P]; so=[b for _,b,*_ in P]; end={a:[e] for a,_,e,_ in P}|{b:[e] for _,b,e,_ in P}
hs=[h for h in ga.alive_heads(lm) if h.layer==1]
pr=cProfile.Profile(); pr.enable(); t=time.process_time(); ga.patch_state(lm,hs,ex,so,end.get); print(time.process_time()-t); pr.disable()
pstats.Stats(pr).sort_stats("cumtime").print_stats(28)
