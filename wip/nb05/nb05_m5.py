import time, random, ga_utils as ga, numpy as np, torch
teacher, student, z = (ga.load_model(n) for n in ("tiny-llama","tiny-llamba-unaligned","tiny-zamba2"))
kv=ga.tasks.kv_retrieval(z, n_pairs=16, n=100, seed=1); let=ga.tasks.mmlu(z, n=100, seed=1)
def heads_of(lm, kind, layers=None): return [ga.Head(m.layer,h) for m in lm.mixers if m.kind==kind and (layers is None or m.layer in layers) for h in m.heads]
seg=ga.segments(z,kv[0]); toks=[z.tokenizer.decode([i]) for i in z.tokenizer(kv[0].prompt).input_ids]
print(seg[0], toks[:8], toks[-12:], kv[0].choices[0])
draw=random.Random(0)
targets=np.array([draw.choice([i for i in range(16) if i!=q.answer]) for q in kv])
def steer(lm, heads, offs, ex=kv, t=targets):
    to={q: [ga.segments(lm,q)[i].start+o for o in offs] for q,i in zip(ex,t)}
    s=ga.steer(lm, heads, ex, to.get); return (s.chosen==t).mean(), s.accuracy
for layers in ([1],[3],[1,3]):
    for offs in ([1],[2],[0],[0,1,2],[1,2,3]):
        print("zamba attn", layers, offs, steer(z, heads_of(z,"attention",layers), offs), flush=True)
for h in heads_of(z,"attention",[1]): print(h, steer(z,[h],[1]))
with ga.replace_layer(student, teacher, 2):
    for offs in ([1],[2],[0],[0,1,2],[1,2,3]):
        print("pt", offs, steer(student, heads_of(student,"attention"), offs), flush=True)
    for h in range(4): print("pt", h, [steer(student,[ga.Head(2,h)],o) for o in ([1],[2])], flush=True)
    print("pt pair", [steer(student,[ga.Head(2,0),ga.Head(2,1)],o) for o in ([1],[2])], flush=True)
# letters in zamba: where
att=heads_of(z,"attention")
def off(ex,hs,**w):
    with ga.ablate(z,hs,**w): return ga.evaluate(z,ex).accuracy
print("letters attn closing", off(let,att,at="closing"), "but closing", off(let,att,but="closing"))
def question(e):  # tokens after options
    n=len(z.tokenizer(e.prompt).input_ids); return list(range(ga.segments(z,e)[-1].end+2, n))
print("question tokens only", off(let,att,at=question), "but question", off(let,att,but=question))
toks=[z.tokenizer.decode([i]) for i in z.tokenizer(let[0].prompt).input_ids]; print(toks)
print("L1 only: closing", off(let,heads_of(z,"attention",[1]),at="closing"),"question", off(let,heads_of(z,"attention",[1]),at=question))
