import cProfile,pstats, ga_utils as ga
from contextlib import ExitStack
teacher, student = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned"))
kv = ga.tasks.kv_retrieval(student, n_pairs=16, n=60, seed=1)
heads = ga.alive_heads(student)
ga.evaluate(student,kv)
p=cProfile.Profile(); p.enable()
with ExitStack() as s:
    for h in heads[4:12]: s.enter_context(ga.replace_head(student, teacher, h.layer, h.head))
    ga.evaluate(student, kv)
p.disable(); pstats.Stats(p).sort_stats("cumtime").print_stats(35)
