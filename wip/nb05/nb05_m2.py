import time, ga_utils as ga, numpy as np, torch
from contextlib import ExitStack
teacher, student, trained = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned","tiny-llamba"))
kv = ga.tasks.kv_retrieval(student, n_pairs=16, n=200, seed=1)
let = ga.tasks.mmlu(student, n=200, seed=1)
kno = ga.tasks.knowledge(student, n=200, seed=1)
def sc(lm, *a): return [round(ga.evaluate(lm,x).accuracy,3) for x in (kv,let,kno)]
def withh(pairs):
    with ExitStack() as s:
        for l,h,t in pairs: s.enter_context(ga.replace_head(student, teacher, l, h, teacher_head=t))
        return sc(student)
H=ga.Head
for best in (0,1):
    for slot in range(4): print("slot", slot, "teacher head", best, withh([(2,slot,best)]))
for h in range(4):
    with ga.ablate(student,[H(2,h)]): print("only silenced L2H%d"%h, sc(student))
with ga.ablate(student,[H(2,h) for h in range(4)]): print("layer 2 silenced", sc(student))
allh=[(l,h) for l in range(5) for h in range(4)]
for gone in ([(2,1)],[(2,0)],[(2,0),(2,1)],[(2,h) for h in range(4)], []):
    print("all but", gone, withh([(l,h,h) for l,h in allh if (l,h) not in gone]))
print("others of layer 2", withh([(2,2,2),(2,3,3)]))
print("both", withh([(2,0,0),(2,1,1)]))
for n in (2,4,8,16,32):
    ex=ga.tasks.kv_retrieval(student,n_pairs=n,n=200,seed=1)
    r=[ga.evaluate(trained,ex).accuracy, ga.evaluate(student,ex).accuracy]
    with ga.replace_head(student,teacher,2,1): r.append(ga.evaluate(student,ex).accuracy)
    with ga.replace_head(trained,teacher,2,1): r.append(ga.evaluate(trained,ex).accuracy)
    print("pairs",n,"trained, student, student+head, trained+head", r)
print("trained", sc(trained))
with ga.replace_head(trained,teacher,2,1): print("trained+head", sc(trained))
# D, gate, conv of the heads
m=student.mixers[2].module
print("D", [[round(x,3) for x in mm.module.D.tolist()] for mm in student.mixers])
print(m.n_qk_heads, m.n_v_heads, m.d_state, m.conv1d.weight.shape)
# other teachers' head in other layers: the best head's "work" given to other layers? not possible
