import time, ga_utils as ga, numpy as np
from contextlib import ExitStack
print(ga.__file__)
t0=time.process_time()
teacher, student, trained = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned","tiny-llamba"))
print("load", time.process_time()-t0)
def T(): 
    global t0; x=time.process_time()-t0; t0=time.process_time(); return f"[{x:.1f}s]"
kv = ga.tasks.kv_retrieval(student, n_pairs=16, n=200, seed=1)
let = ga.tasks.mmlu(student, n=200, seed=1)
kno = ga.tasks.knowledge(student, n=200, seed=1)
choose = ga.tasks.kv_retrieval(student, n_pairs=16, n=100, seed=31)
print(len(student.encode(kv[0].prompt)[0]), kv[0].prompt[:80], kv[0].choices[:3], T())
print("base", *(ga.evaluate(student,x).accuracy for x in (kv,let,kno)), T())
print("teacher", *(ga.evaluate(teacher,x).accuracy for x in (kv,let,kno)), T())
for l in range(5):
    with ga.replace_layer(student, teacher, l):
        print("layer", l, "choose", ga.evaluate(student, choose).accuracy, "kv/let/know", *(ga.evaluate(student,x).accuracy for x in (kv,let,kno)), T())
heads = ga.alive_heads(student)
for h in heads:
    with ga.replace_head(student, teacher, h.layer, h.head):
        print(h, "choose", ga.evaluate(student, choose).accuracy, "kv/let/know", *(ga.evaluate(student,x).accuracy for x in (kv,let,kno)), T())
