"""Rebuild notebook 04 from cells; ids of cells that stay are kept."""
import json, re, sys, nbformat
PATH="/work/main/notebooks/04_ssm_implicit_attention.ipynb"
OLD="/tmp/b4/old.ipynb"
old={c["id"]:c for c in nbformat.read(OLD,4).cells}
cells=[]
def md(id,src): cells.append(nbformat.v4.new_markdown_cell(src.strip("\n"),id=id))
def code(id,src,alt=None,tags=None,hide=False):
    m={}
    if tags: m["tags"]=tags
    if alt: m["alt"]=[alt] if isinstance(alt,str) else alt
    if hide: m.update({"collapsed":True,"jupyter":{"outputs_hidden":True}})
    cells.append(nbformat.v4.new_code_cell(src.strip("\n"),id=id,metadata=m))
def keep(id):
    c=old[id]; c=nbformat.from_dict(json.loads(json.dumps(c)))
    if c.cell_type=="code": c.outputs=[]; c.execution_count=None
    cells.append(c)

md("c000", r'''
# 04 · SSMs: implicit attention

> **After this notebook you can**
> - take a Mamba layer apart by hand (convolution, scan, gate) and put it together again as a matrix over positions
> - tell what the short convolution does from what the state does, and at which tokens
> - find out whether an SSM has a head that aggregates, and compare those that do with attention's
> - find the layer in whose state a dictionary lies, read that state, exchange it, and say what `d_state` limits
>
> **You need to know**: notebooks 02 and 03 (steering, paired tests); what a recurrent network is
>
> **Time**: 85 minutes, 15 of them for the bonus exercise · **Hardware**: a CPU; two cores are enough

[Course map](../README.md) · [← 03 Ablating heads on MMLU](03_ablating_heads_on_mmlu.ipynb) · [05 Hybrid head replacement →](05_hybrid_head_replacement.ipynb) · [Words](00_start_here.ipynb#Words)
''')
keep("8000ef13")
code("c001", r'''
from contextlib import nullcontext
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import ga_utils as ga
from ga_utils.attention import closing_shares, mean_ratio
from ga_utils.plots.rates import rates
from ga_utils.ssm import conv_inputs, gated, mixer_input, scan_of
from ga_utils.tasks.world import NOUNS, NUMBERS
''')
keep("624e25c4")
code("c002", r'''
MODEL = "tiny-llama"
SSM = "tiny-llamba"  # MODEL with SSMs in place of attention
ONETAP = "tiny-llamba-onetap"  # the same without a short convolution
MAMBA2 = "tiny-mamba2"  # from scratch
MAMBA1 = "tiny-falcon-mamba"  # from scratch, of the older kind
HYBRID = "tiny-zamba2"  # Mamba-2 and, in two layers, attention
''', tags=["parameters"])
code("04-mine", r'''
def mine_or_reference(function):
    """Your solution of an exercise where its check passed, and the course's otherwise."""
    passed = ga.checks.OUTCOMES.get(function.__name__) == "✓"
    return function if passed else getattr(ga.checks, function.__name__).reference
''')
md("04-picture", r'''
![One layer from top to bottom. The short convolution mixes each token with the three before it. The scan carries a state from token to token, which fades, takes in B times x, and is read with C. The gate scales what is read.](images/ssm_layer.svg)

That is the whole layer, and what takes the place of attention in a Mamba. Two of its three parts move something from token to token: the **convolution**, three tokens far, and the **state**, as far as it remembers. It is easy to credit one with the work of the other. In this notebook we build both by hand, switch off each, and say which does what.

## 1. A recurrence, by hand
''')
md("c003", r'''
A **state space model** (SSM) reads one token at a time and keeps a *state* h. At each step the state fades a little, the new value x comes in, and an output y is read off:

```text
h[t] = decay[t] · h[t−1] + B[t] · x[t]
y[t] = C[t] · h[t]
```

In Mamba, `decay`, B and C are computed from the token, so the model chooses what to forget (decay), what to store (B) and what to read (C). The smallest case: four tokens, a state of one number.
''')
keep("c004")
code("c005", r'''
def recurrence(x, decay, B, C):
    h, y = torch.tensor(0.0), []
    for t in range(len(x)):
        h = decay[t] * h + B[t] * x[t]
        y.append(C[t] * h)
    return torch.stack(y)

y = recurrence(x, decay, B, C)
y
''')
keep("ex-next_state"); keep("stub-next_state"); keep("fold-next_state")
keep("c006"); keep("c007"); keep("c008")
md("c009", r'''
Products of many decays are better written as sums of logarithms: decay[s+1] · … · decay[t] = exp(total[t] − total[s]) with `total = log_decay.cumsum(0)`. That is how Mamba-2 writes it:

```text
M = L ∘ (C Bᵀ)        L: a mask of decays;  C Bᵀ: what is read, times what was stored;  ∘: entry by entry
```

Where nothing decays, all logarithms are 0 and L is attention's causal mask: 1 up to the diagonal, 0 above. What is left is **linear attention**: C is the query, B the key, x the value, and there is no softmax. So an SSM is linear attention that forgets.

(In notebooks 02 and 03 a pattern was called A. In the Mamba papers A is the rate at which a state fades. So from here on A is that rate, and every matrix over positions is M, attention's as well.)
''')
keep("c010"); keep("c011"); keep("c012")
code("c013", r'''
mask = mine_or_reference(decay_mask)
M_toy = mask(decay.log()) * torch.outer(C, B)
assert torch.allclose(M_toy @ x, y)
no_decay = mask(torch.zeros(4)) * torch.outer(C, B)
assert torch.equal(no_decay, torch.outer(C, B).tril())  # linear attention
M_toy
''')
md("c014", r'''
## 3. A real layer, part by part

### The short convolution

Before the scan sees them, x, B and C go through a short convolution. Each channel is a weighted sum of its own last four values. The four weights are called **taps**; the last one is for the present token:

```text
out[t] = tap[0]·in[t−3] + tap[1]·in[t−2] + tap[2]·in[t−1] + tap[3]·in[t]
```

Before the text there are zeros. One channel, five tokens, taps that add the token before and half of the present one:
''')
code("04-conv-toy", r'''
taps = torch.tensor([0.0, 0.0, 1.0, 0.5])  # three tokens ago, two, one, now
channel = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
padded = torch.cat([torch.zeros(3), channel])
torch.stack([taps @ padded[t : t + 4] for t in range(5)])
''')
md("ex-short_conv", r'''
### Exercise: the short convolution

> **Difficulty** ●●○○ · **about 6 minutes** · check: `ga.checks.short_conv`

Given `x` **[pos, channel]** and `taps` **[channel, 4]**, four taps for each channel, the last one for the present token. Return the convolved values **[pos, channel]**.
''')
code("stub-short_conv", r'''
def short_conv(x, taps):
    ...

ga.checks.short_conv(short_conv);
''')
md("fold-short_conv", r'''
<details><summary>Hint</summary>

Put three rows of zeros in front of x. Then row `t` of the result needs rows `t` to `t + 3` of that. Four shifted copies of it, each times its own column of `taps`, do all positions at once.

</details>
<details><summary>Solution</summary>

```python
def short_conv(x, taps):
    padded = torch.cat([torch.zeros(3, x.shape[1]), x])
    return sum(taps[:, i] * padded[i : i + len(x)] for i in range(4))
```

</details>
''')
md("04-llamba", r'''
Now a real one. `tiny-llamba` is a **Llamba**: `tiny-llama` with each attention layer replaced by a Mamba-2 layer that learned to imitate it (distillation; [data/README.md](../data/README.md)). `read` catches what enters a layer's mixer, u, and what leaves its heads, z:
''')
code("c020", r'''
def read(lm, layer, prompt):
    """The SSM of a layer, its input u [pos, d_model], and z [pos, n_heads * d_head]."""
    inputs, outputs = [], []
    mixer = next(m for m in lm.mixers if m.layer == layer and m.kind != "attention")
    handle = mixer.module.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(mixer_input(args, kwargs)), with_kwargs=True
    )
    with mixer.on_z(outputs.append), torch.no_grad():
        lm.model(lm.encode(prompt), use_cache=False)
    handle.remove()
    return mixer.module, inputs[0][0], outputs[0][0]
''')
code("c015", r'''
llama, llamba = ga.load_model(MODEL), ga.load_model(SSM)
example = ga.tasks.mmlu(llamba, n=1, seed=3)[0]
LAYER = 1
layer_1, u, z = read(llamba, LAYER, example.prompt)
scan = ga.scan(llamba, example.prompt, LAYER)  # what the scan works on
{"u": u.shape, "x": scan.x.shape, "B, C": scan.B.shape, "dt": scan.dt.shape, "z": z.shape}
''')
md("04-conv-real-text", r'''
A head's state is not one number but **d_state × d_head** of them. So x is a vector for each head, B and C are vectors, too, and C[t] B[s] becomes their dot product. In front of all that stands the convolution: `conv_inputs` is what it reads, a projection of u. Convolved, that *is* x, B and C:
''')
code("04-conv-real", r'''
convolve = mine_or_reference(short_conv)
weight = layer_1.conv1d.weight[:, 0].detach().cpu()  # [channel, tap]
convolved = convolve(conv_inputs(layer_1, u).cpu(), weight) + layer_1.conv1d.bias.detach().cpu()
operands = torch.cat([part.flatten(1) for part in (scan.x, scan.B, scan.C)], dim=1)
assert torch.allclose(convolved, operands, atol=1e-5)
''')
md("04-taps-text", r'''
So M multiplies values that the convolution has mixed before. How much do the taps on the past weigh? Left, all taps of this layer; right, the share of each tap in all of them, layer by layer:
''')
code("04-taps", r'''
def tap_shares(module):
    size = module.conv1d.weight[:, 0].detach().abs().mean(0)
    names = ["3 ago", "2 ago", "1 ago", "now"][-len(size) :]
    return dict(zip(names, (size / size.sum()).tolist()))

figure, (left, beside) = plt.subplots(1, 2, figsize=(11, 2.6), layout="constrained")
top = float(weight.abs().max())
left.imshow(weight.T, cmap="RdBu", vmin=-top, vmax=top, aspect="auto")
left.set(yticks=range(4), yticklabels=tap_shares(layer_1), xlabel="channel: x, then B, then C")
left.set_title(f"{llamba.name}, layer {LAYER}", fontsize=11)
of_layers = {f"layer {m.layer}": tap_shares(m.module) for m in llamba.mixers}
ga.plots.table(of_layers, "share of each tap", ax=beside);
''', alt="Left, the four taps of the 160 channels of a layer as coloured stripes, blue for positive and red for negative: those of the present token are the strongest, but those of earlier tokens are coloured as well. Right, a table of the share of each tap in five layers: the present token has a half or more everywhere, one token ago between 10 and 30 percent, two and three ago less.")
md("04-taps-see", r'''
**What to see.** The present token weighs most everywhere. The three before it together have a fifth to a third of the weight, most in layer 0. Blue adds and red takes away; the dark stripes in the upper rows are channels that look back for good. But weights only say what *can* be mixed. What is needed, section 4 will ask.
''')
md("c016", r'''
### The scan

Now the state itself, for one head, token by token, with your `next_state`; then as M x with `ga.attention_map`. They must agree:
''')
code("c017", r'''
HEAD = 2
M = ga.attention_map(llamba, example.prompt, LAYER)  # [head, query, key]

def by_recurrence(scan, head):
    step = mine_or_reference(next_state)
    h, outputs = torch.zeros(scan.B.shape[-1], scan.x.shape[-1]), []
    for t in range(len(scan.x)):
        fades = torch.exp(scan.A[head] * scan.dt[t, head])
        h = step(h, fades, scan.B[t, head], scan.x[t, head])
        outputs.append(scan.C[t, head] @ h)
    return torch.stack(outputs)
''')
code("c018", r'''
assert torch.allclose(M[HEAD] @ scan.x[:, HEAD], by_recurrence(scan, HEAD), atol=1e-4)
''')
md("c019", r'''
### The gate, and all of it in three lines

Is that what the *model* computes? What is missing is D, a shortcut from each token's x to its own output, and the gate, by which each token scales what it has read:

```text
x, B, C = convolution(in_proj(u))      each token mixed with the three before it
      y = M x + D x                    M from B, C and the decays
      z = y · gate(u)                  Llamba: silu(gate + z_bias); Mamba-2: inside a norm
```

`in_proj` lays x, B, C, the gate and the decays side by side, in this order; `z_bias` is a constant that is added to the gate.
''')
code("c021", r'''
width = len(weight)
gate = (layer_1.in_proj(u)[:, width : width + z.shape[-1]] + layer_1.z_bias).cpu()
scanned = torch.einsum("hts,shp->thp", M, scan.x) + scan.D[:, None] * scan.x
by_hand = scanned.flatten(1) * torch.nn.functional.silu(gate)
assert torch.allclose(by_hand, z.cpu(), atol=1e-4)
''')
md("04-raw-text", r'''
Nothing came from elsewhere: in layer 0, u is nothing but the tokens' embeddings behind a norm.
''')
code("04-raw", r'''
first_u = read(llamba, 0, example.prompt)[1]
stream = llamba.model.get_input_embeddings()(llamba.encode(example.prompt))[0]
assert torch.allclose(llamba.layers[0].input_layernorm(stream), first_u, atol=1e-6)
''')
md("c022", r'''
Other families differ in details only. `tiny-mamba2` was trained from scratch and never saw a Transformer; its four heads *share* B and C, and a step size dt scales both the decay and what is stored. Two helpers know the details: `scan_of` makes x, B, C, dt and A from u, convolution included, and `gated` applies the gate, with the norm where there is one. The same identity, in every layer of three models, against Hugging Face's own modules:
''')
code("336bd36a", r'''
mamba2, falcon = ga.load_model(MAMBA2), ga.load_model(MAMBA1)

def z_by_matrix(module, u):
    scan = scan_of(module, u)
    M = scan.matrix(range(scan.x.shape[1]))
    y = torch.einsum("hts,shp->thp", M, scan.x) + scan.D[:, None] * scan.x
    return gated(module, u, y.flatten(1))
''')
code("4676c1a1", r'''
for lm in (llamba, mamba2, falcon):
    for mixer in lm.mixers:
        module, entering, leaving = read(lm, mixer.layer, example.prompt)
        assert torch.allclose(z_by_matrix(module, entering), leaving, atol=1e-4), mixer
''')
keep("ex-implicit_attention"); keep("stub-implicit_attention"); keep("fold-implicit_attention")
md("04-hand-text", r'''
The same for one head of `tiny-mamba2`, against `ga.attention_map`:
''')
code("04-hand", r'''
one_head = mine_or_reference(implicit_attention)
scan2 = ga.scan(mamba2, example.prompt, LAYER)
M_head = one_head(scan2.A[HEAD], scan2.dt[:, HEAD], scan2.B[:, 0], scan2.C[:, 0])
of_map = ga.attention_map(mamba2, example.prompt, LAYER, [HEAD])[0]
assert torch.allclose(M_head, of_map, atol=1e-4)
''')
md("27592bfe", r'''
### Mamba-1: a matrix for every channel

In **Mamba-1** dt has an entry for every channel c, and A one for every channel and every number n of its state. So each channel forgets at paces of its own and has a matrix of its own; a "head" of Mamba-1 is one channel:

```text
M_c[t, s] = Σ_n  C[t, n] · exp(A[c, n] · (dt[s+1, c] + … + dt[t, c])) · dt[s, c] · B[s, n]        s ≤ t
```

That is a sum of Mamba-2 heads with one number of state each:
''')
code("04-mamba1", r'''
def channel_matrix(scan, c):
    B, C, states = scan.B[:, 0], scan.C[:, 0], range(scan.A.shape[1])
    return sum(one_head(scan.A[c, n], scan.dt[:, c], B[:, [n]], C[:, [n]]) for n in states)

n_channels = falcon.mixers[LAYER].n_heads
four = [0, n_channels // 5, n_channels // 2, n_channels - 1]  # any four
matrices = ga.attention_map(falcon, example.prompt, LAYER, four)
falcon_scan = ga.scan(falcon, example.prompt, LAYER)
for c, of_channel in zip(four, matrices):
    assert torch.allclose(channel_matrix(falcon_scan, c), of_channel, atol=1e-4)
''')
md("04-mamba1-text", r'''
(That M and the gate give the module's own z, the loop above has asserted for all channels.) `tiny-falcon-mamba` has 256 channels a layer, the paper's Falcon-Mamba-7B 8,192, so name those that you want; nothing is made for the others.
''')
code("c023", r'''
figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
for ax, c, of_channel in zip(axes, four, matrices):
    ax.imshow(of_channel / of_channel.abs().max(), cmap="RdBu", vmin=-1, vmax=1)
    ax.set(title=f"channel {c}", xlabel="key", ylabel="query")
''', alt="Implicit attention of four Mamba-1 channels as square matrices, coloured below the diagonal, blue for adding and red for subtracting. Some have their colour near the diagonal, others also in vertical stripes further back.")
md("c024", r'''
**What to see.** Blue adds, red subtracts: implicit attention may be negative, which softmax never is. A channel whose colour stays near the diagonal forgets soon; vertical stripes are tokens that were stored well and are still read much later.

### Where is mamba-ssm in this?

The `mamba-ssm` package computes the same scans with CUDA kernels, without ever making M. On a GPU with that package (`pip install "ga-utils[cuda]"`), Hugging Face's Mamba classes use it by themselves, and our Llamba does in bfloat16; without it they fall back on plain PyTorch, which gives the same numbers, slower. What this machine has:
''')
keep("c025")
md("04-conv", r'''
## 4. What is the convolution for?

`ga.ablate_conv(lm)` sets all taps on the past to zero. What still moves from token to token then moves through the state (or, in a hybrid, through attention). Three tests, as in notebook 03: letters, knowledge (facts to complete), and dictionaries of 8 pairs. For scale, in the last row of each table: the head that costs letters the most, found on other questions.
''')
code("04-tests", r'''
def tests(lm, n=100, seed=31):
    return {
        "letters": ga.tasks.mmlu(lm, n=n, seed=seed),
        "knowledge": ga.tasks.knowledge(lm, n=n // 2, seed=seed),
        "KV 8": ga.tasks.kv_retrieval(lm, n_pairs=8, n=n, seed=seed),
    }


def accuracies(lm, asked):
    return {name: ga.evaluate(lm, questions).accuracy for name, questions in asked.items()}
''')
code("04-sweeps", r'''
hybrid = ga.load_model(HYBRID)
ssms = [llamba, mamba2, hybrid]
search = ga.tasks.mmlu(llamba, n=100, seed=32)  # heads are found here, and reported elsewhere
sweeps = {lm.name: ga.sweep_heads(lm, search, progress=False) for lm in (llama, *ssms)}
''')
code("04-off-cases", r'''
def ssm_layers(lm):
    return [mixer.layer for mixer in lm.mixers if mixer.kind != "attention"]


def convolutions_off(lm):
    asked, costliest = tests(lm), sweeps[lm.name].top(1)
    cases = {"nothing": nullcontext(), "all convolutions": ga.ablate_conv(lm)}
    cases |= {f"that of layer {x}": ga.ablate_conv(lm, [x]) for x in ssm_layers(lm)}
    cases["the costliest head"] = ga.ablate(lm, costliest)
    table = {}
    for name, off in cases.items():
        with off:
            table[name] = accuracies(lm, asked)
    return table
''')
md("04-off-text", r'''
**State your hypothesis first.** With all convolutions off, which of the three tests will suffer in which model?
''')
code("04-off", r'''
off = {lm.name: convolutions_off(lm) for lm in ssms}
figure, axes = plt.subplots(1, 3, figsize=(13, 2.9), layout="constrained")
for ax, (name, table) in zip(axes, off.items()):
    ga.plots.table(table, name, ax)
axes[0].set_ylabel("switched off");
''', alt="Three tables of accuracies, one for each model: rows are what is switched off, columns letters, knowledge and dictionaries of 8 pairs. tiny-llamba loses letters without the convolutions of layers 0 or 1 and keeps its facts. tiny-mamba2 and tiny-zamba2 lose everything, facts included, without that of layer 0; without that of their last layer they lose letters alone.", hide=True)
code("04-off-check", r'''
# NBVAL_CHECK_OUTPUT
all_off = {name: table["all convolutions"] for name, table in off.items()}
print("all off, letters below 45 %:", [row["letters"] < 0.45 for row in all_off.values()])
print("all off, facts above 90 %:", [row["knowledge"] > 0.9 for row in all_off.values()])
for name, table in off.items():
    alone = [row for case, row in table.items() if case.startswith("that of")]
    gone = [row["letters"] < 0.6 and row["knowledge"] > 0.95 for row in alone]
    print(f"{name}: a layer whose convolution letters need and facts don't:", any(gone))
''')
md("04-off-see", r'''
**What to see.** In `tiny-llamba`, letters fall to a third without the convolutions, near chance, and facts stay. That is what notebook 02 saw when the Gather heads of a Transformer were disabled: what needs the context is lost, what is remembered remains. Here not one head was touched. Two layers do it, 0 and 1; dictionaries need that of layer 0.

In the two models trained from scratch, everything falls without the convolution of layer 0, facts included. That says nothing about retrieval: facts need it to tell what is asked. The later layers say more. Without the convolution of the last one, letters fall to chance or near it, and facts and dictionaries stay. No *head* costs as much.
''')
md("04-where-text", r'''
### Where?

A head that is needed may be needed anywhere; notebook 02 asked *where*. So let the heads of one layer write what they would write without its convolution, but only at some tokens; at all others, and in all other layers, everything stays. (`ga.patch`, whose sources are read with the convolution off.) The places: the words of the options, the tokens that close an option, both of these, the question, and the last token.
''')
code("04-where", r'''
def places(lm):
    def words(e):
        return [p for s in ga.segments(lm, e) for p in range(s.start + 2, s.end)]

    def closing(e):
        return sorted(ga.positions(lm, e, "closing"))

    def both(e):
        return sorted({*words(e), *closing(e)})

    def question(e):
        return range(closing(e)[-1] + 1, ga.positions(lm, e, "last")[0])

    named = {"words": words, "closing": closing, "words,\nclosing": both, "question": question}
    return named | {"last": "last"}
''')
code("04-off-at", r'''
def off_at(lm, layer, asked):
    mixer = next(m for m in lm.mixers if m.layer == layer and m.kind != "attention")
    heads = [ga.Head(layer, number) for number in mixer.heads]
    rows = {"nowhere": ga.evaluate(lm, asked).accuracy}
    for name, at in places(lm).items():
        without = ga.ablate_conv(lm, [layer])
        rows[name] = ga.patch(lm, heads, asked, asked, at, at, sources_in=without).accuracy
    return rows
''')
code("04-where-figure", r'''
prompts = ga.tasks.mmlu(llamba, n=100, seed=11)
figure, axes = plt.subplots(1, 3, figsize=(13, 2.5), layout="constrained")
where = {}
for ax, lm in zip(axes, ssms):
    where[lm.name] = {f"layer {x}": off_at(lm, x, prompts[:40]) for x in ssm_layers(lm)}
    ga.plots.table(where[lm.name], lm.name, ax)
axes[0].set_ylabel("convolution off");
''', alt="Three tables of letters right, one for each model: rows are layers, columns the tokens at which its convolution is off: nowhere, words, closing, both, question, last. In tiny-llamba layer 1 is needed at the words and less at closing tokens. In the two others the last layer's convolution is needed at the last token alone.")
code("04-where-check", r'''
# NBVAL_CHECK_OUTPUT
for name in (MAMBA2, HYBRID):
    whole, *others, at_last = list(where[name].values())[-1].values()
    print(f"{name}, last layer: needed at the last token", at_last < 0.5,
          "· and nowhere else", min(others) > whole - 0.1)
for name, rows in where.items():
    early = [row["words,\nclosing"] for row in list(rows.values())[:3]]
    print(f"{name}, one of layers 0 to 2: below 60 % in the options", min(early) < 0.6)
''')
md("04-where-see", r'''
**What to see.** Two jobs. In layers 0 to 2 convolutions are needed *inside the options*: off at their words and closing tokens alone, letters fall to 42 % or less in each model. There they gather. A convolution reaches as far as an option is long, four tokens, and one after another they pass the words on to the token that closes it: in `tiny-mamba2` that of layer 1 is needed at the words, that of layer 2 at the closing tokens.

The other job is at the last token, `Answer:`. In the two models from scratch the last layer's convolution is needed there *and nowhere else*; in `tiny-llamba` layer 0's is needed there, too. That isn't gathering. The three tokens before `Answer:` end the question, so what this convolution brings along is most likely what was asked. (Most likely: by then these tokens may hold more than their own words.)

So **in these models the convolution is the first Gather head**, and that is not all it is.
''')
md("04-literature", r'''
> **In the literature.** Arora and others (2025) trained several kinds of models to look up values, and asked by interventions where the work is done. Mamba does learn induction, they found, but through its short convolution and not through its SSM. Mamba-3 (Lahoti and others, 2026) does without a short convolution: its recurrence takes in the present *and* the previous token at each step, and B and C have biases.
''')
md("04-onetap-text", r'''
### A model whose state must gather

So can a state gather, where there is no convolution to do it? `tiny-llamba-onetap` is a Llamba like the one above, distilled from the same Transformer, with a convolution of **one** tap, which is none: only the scan moves anything from token to token. First the three tests, with all that `ablate_conv` can switch off (nothing) and without the head that a sweep finds:
''')
code("04-onetap", r'''
onetap = ga.load_model(ONETAP)
sweeps[ONETAP] = ga.sweep_heads(onetap, search, progress=False)
asked = tests(onetap)
off_onetap = {"nothing": accuracies(onetap, asked)}
with ga.ablate_conv(onetap):
    off_onetap["all convolutions"] = accuracies(onetap, asked)
''')
code("04-onetap-heads", r'''
for head in sweeps[ONETAP].top(3):
    with ga.ablate(onetap, [head]):
        off_onetap[str(head)] = accuracies(onetap, asked)
''')
code("04-onetap-figure", r'''
figure, (left, beside) = plt.subplots(1, 2, figsize=(11, 2.4), layout="constrained")
ga.plots.table(off_onetap, f"{ONETAP}, switched off:", left)
ga.plots.effects({"letters": sweeps[ONETAP]}, sweeps[ONETAP].top(3), beside);
''', alt="Left, a table for the one-tap Llamba: with nothing off, and with all convolutions off, 99 % of letters, all facts and 77 % of dictionaries are right. Without the costliest head letters fall to 16 % and dictionaries to 17 %, and all facts stay. Without the next two letters fall to between 35 and 39 %. Right, what each of twenty heads costs: three cost more than 50 points, one about 40, most nothing.")
code("04-onetap-check", r'''
# NBVAL_CHECK_OUTPUT
nothing, no_convolution, first = (off_onetap[name] for name in list(off_onetap)[:3])
print("the convolution off changes no answer:", no_convolution == nothing)
print("letters at least 80 %:", nothing["letters"] >= 0.8)
print("the head found costs letters at least 30 points:",
      nothing["letters"] - first["letters"] >= 0.3)
print("and facts at most 10:", nothing["knowledge"] - first["knowledge"] <= 0.1)
''')
md("04-onetap-see", r'''
**What to see.** Switching off a convolution that is none changes no answer. One head costs four fifths of the letters and of the dictionaries, and not one fact; two more, in earlier layers, cost more than half of the letters. So a state *can* gather and pick. This model learned it from a Transformer, with one tap from the first step on; where a convolution was at hand, training used it.
''')
code("04-closing-off", r'''
letters = tests(llamba)["letters"]
for lm in (llama, llamba, onetap, mamba2, hybrid):
    with ga.ablate(lm, ga.alive_heads(lm), at="closing"):
        print(f"{lm.name}, all heads off at closing tokens:", ga.evaluate(lm, letters))
''')
md("04-closing-off-see", r'''
In all five models, what heads write at closing tokens is needed: there, as in notebook 02, each option is condensed. Who brought it there, this test does not tell, because a head's output comes after its convolution.
''')
md("c035", r'''
## 5. Who aggregates?

An Aggregate head lets the last token pick the right option at the tokens that close it. So three things must be true of it. Letters *need* it. Of what its last row gives to closing tokens, the *right* option's get clearly more than a quarter, which is chance. And closing tokens get something worth mentioning. Notebook 02 asked for shares of at least 0.4 and 0.1. Here they are for every head of five models. An SSM's entries may be negative; its shares are those of their sizes (`ga.shares`).
''')
code("c036", r'''
def looks(lm, asked):
    """Of each head: the right option's share among closing tokens, and what these get."""
    to_right, to_all = np.moveaxis(closing_shares(lm, asked, progress=False), -1, 0)
    return mean_ratio(to_right, to_all), to_all.mean(0)


models = {lm.name: lm for lm in (llama, llamba, onetap, mamba2, hybrid)}
share, closers = {}, {}
for name, lm in models.items():
    share[name], closers[name] = looks(lm, search[:60])
''')
code("04-candidates", r'''
def candidates(name):
    passed = (share[name] >= 0.4) & (closers[name] >= 0.1)
    return [head for head in ga.alive_heads(models[name]) if passed[head.layer, head.head]]
''')
code("c037", r'''
figure, axes = plt.subplots(1, 5, figsize=(13, 2.9), layout="constrained", sharey=True)
for ax, (name, lm) in zip(axes, models.items()):
    for head in ga.alive_heads(lm):
        i = head.layer, head.head
        at, full = (share[name][i], 100 * sweeps[name].drop[i]), closers[name][i] >= 0.1
        ax.plot(*at, "o", color=ga.plots.BLUE, fillstyle="full" if full else "none")
        if head in candidates(name) or head in sweeps[name].top(1):
            ax.annotate(str(head), at, (4, 4), textcoords="offset points", fontsize=8)
    ax.axvline(0.25, ls="--", color=ga.plots.GREY)
    ax.set(title=name, xlim=(0, 1.15), ylim=(-10, 85))
axes[0].set_ylabel("letters lost without it (points)")
figure.supxlabel("right option's share among closing tokens (dashed: chance)", fontsize=10);
''', alt="Five figures, one for each model, with a dot for each head: letters lost without it over the right option's share among closing tokens. In tiny-llama three heads lie far to the right, at 0.6 to 0.97, and cost nothing alone. In tiny-llamba one head lies at 0.42 and costs over 70 points. In tiny-llamba-onetap the costliest head, 79 points, lies at 0.37. In tiny-mamba2 and tiny-zamba2 no head is right of 0.4.")
code("c038", r'''
# NBVAL_CHECK_OUTPUT
for name in models:
    print(f"{name}: heads that look like an Aggregate head:", len(candidates(name)))
''')
md("c039", r'''
**What to see.** Up: needed. Right: looks at the right option's closing tokens. Full dots: closing tokens get at least a tenth. An Aggregate head is up *and* right, alone or in a team. In the Transformer three heads are far to the right, and none of them costs anything alone: they stand in for one another (notebook 02). In the Llamba one head is both, but at 0.42 and not at 0.95. In its one-tap sibling the costliest head falls short of the floor.

And in the two models from scratch **no head passes**. Some are needed, none picks the right option where it closes. They answer letters in another way, or in steps too small for this measure; calling their costliest head an aggregator would be wrong.
''')
md("04-roles-text", r'''
Heads that stand in for one another cost something only as a team (notebook 02). `ga.find_roles` looks for teams among the heads that pass these floors, so where none passes there is no team either. All its evidence for the Llamba:
''')
code("04-roles", r'''
found_on = ga.tasks.mmlu(llamba, n=300, seed=1), ga.tasks.knowledge(llamba, n=100, seed=1)
roles = ga.find_roles(llamba, *found_on, progress=False)
roles
''')
code("04-roles-check", r'''
# NBVAL_CHECK_OUTPUT
print("one head aggregates:", len(roles.aggregate) == 1)
alone = roles.evidence[~roles.evidence.heads.str.contains(" ")]
gather_alone = alone[alone.role == "Gather"].letters
print("no single head, off at closing tokens, costs half of the skill:",
      bool((gather_alone < 36).all()))
''')
md("04-roles-see", r'''
The first lines: one head is the Aggregate head. Without it letters lose over 70 points, facts none, and that is confirmed on questions it was not chosen on. Below it, Gather: heads switched off at closing tokens only. Each of several costs something, none half of the skill. The best team of them stands at the edge of the floors: with other questions it is named, with these it is not. So in this Llamba gathering is spread, over a few heads and the convolutions of section 4.
''')
md("04-steer-text", r'''
### The proof: steer it

A share among closing tokens may be there by the way. So steer, as in notebook 02: the last row of a head looks at a *wrong* option's closing tokens and nowhere else. Does the answer follow? Every head of all five models by itself, and the Transformer's three as a team:
''')
code("04-steer", r'''
rng = np.random.default_rng(0)
wrong = np.array([rng.choice([i for i in range(4) if i != e.answer]) for e in prompts])
''')
code("04-follows", r'''
def follows(lm, heads, n=30):
    asked = prompts[:n]
    to = {e: ga.segments(lm, e)[target].closing for e, target in zip(asked, wrong)}
    return float((ga.steer(lm, heads, asked, to.get).chosen == wrong[:n]).mean())
''')
code("04-steer-figure", r'''
steered = {
    name: {f"{head}, {name}": follows(lm, [head]) for head in ga.alive_heads(lm)}
    for name, lm in models.items()
}
team = candidates(MODEL)
steered[MODEL]["the team"] = follows(llama, team)
most = {name: max(row, key=row.get) for name, row in steered.items()}
rates(steered, list(most.values()), "answers that go to our wrong option");
''', alt="Five rows of dots, one for each model: answers that go to the wrong option to which a head is steered. tiny-llama: the team of three 100 %, one of its heads alone 43 %, another 33 %, most none. tiny-llamba: one head 73 %, all others 17 % or less. tiny-llamba-onetap: one head 63 %, all others 17 % or less. tiny-mamba2: 13 % at most. tiny-zamba2: 27 and 17 %, all others less than 5 %.")
code("04-steer-check", r'''
# NBVAL_CHECK_OUTPUT
for name in (SSM, ONETAP):
    ranked = sorted(steered[name].values())
    print(f"{name}: one head moves at least 40 %:", ranked[-1] >= 0.4,
          "· any other at most 30 %:", ranked[-2] <= 0.3)
for name in (MAMBA2, HYBRID):
    print(f"{name}: no head moves 40 %:", max(steered[name].values()) < 0.4)
''')
md("04-steer-see", r'''
**What to see.** Steered together, the Transformer's three decide every answer. The Llamba's head decides over 70 % on its own, and its one-tap sibling's over 60 %; no other head comes near. So the sibling's head *does* an Aggregate head's work, though its share fell short of the floor. A share says where a row looks, steering what comes of it, and where they differ believe the steering.

In Mamba-2 from scratch no head moves more answers than its own mistakes would bring about, in the hybrid two move some, and none a half. By this measure, too, they have no Aggregate head.
''')
md("04-channels-text", r'''
### Mamba-1: groups of channels

In Mamba-1 a head is a single channel, and among 1,024 of them one is hardly missed. So, as the paper does with Falcon-Mamba, we switch off *groups* of them in `tiny-falcon-mamba`. With `method="screen"` a sweep estimates all channels from one backward pass and switches off the most suspicious ones in earnest. Ours look for channels that are needed at the *last* token, and for channels needed at *closing* tokens. A group is the k costliest; the controls are 20 random groups of the same size.
''')
code("04-channels", r'''
screened = {
    place: ga.sweep_heads(falcon, search[:40], method="screen", k=32, at=place, progress=False)
    for place in ("last", "closing")
}
''')
code("04-drawn", r'''
channels, draw = ga.alive_heads(falcon), np.random.default_rng(0)


def drawn(k):
    return [channels[i] for i in draw.choice(len(channels), k, replace=False)]
''')
code("04-groups", r'''
ks = [2, 8, 32]


def letters_without(group, place):
    with ga.ablate(falcon, group, at=place):
        return ga.evaluate(falcon, prompts[:30]).accuracy


''')
code("04-groups-off", r'''
by_chance = [[letters_without(drawn(k), "last") for _ in range(20)] for k in ks]
channel_groups = {p: [letters_without(s.top(k), p) for k in ks] for p, s in screened.items()}
''')
code("04-groups-figure", r'''
ax = ga.plots.spread(ks, by_chance, "channels switched off, of 1,024")
for (place, found), marker in zip(channel_groups.items(), "os"):
    ax.plot(ks, found, marker=marker, label=f"found, off at: {place}")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1));
''', alt="Letters of tiny-falcon-mamba over the number of channels switched off, 2, 8 and 32. Random groups: 100 % throughout. Channels found and off at the last token: 67, 40 and 27 %. Found and off at closing tokens: 93 %.")
md("04-groups-figure-see", r'''
**What to see.** Eight channels of 1,024, off at the last token alone, cost half of the letters and more. Random groups cost nothing. At closing tokens no small group does much: here gathering is spread over many channels, and over convolutions.

The eight again, by place and by task:
''')
code("04-group-table", r'''
eight, eight_tests = screened["last"].top(8), tests(falcon, n=60)
cases = {"nothing": nullcontext(), "everywhere": ga.ablate(falcon, eight)}
cases["last token"] = ga.ablate(falcon, eight, at="last")
cases["all others"] = ga.ablate(falcon, eight, but="last")
eight_off = {}
for name, off_there in cases.items():
    with off_there:
        eight_off[name] = accuracies(falcon, eight_tests)
ga.plots.table(eight_off, "eight channels off");
''', alt="A table for tiny-falcon-mamba. With nothing off, and with eight channels off at all tokens but the last, everything is right. With the eight off everywhere, or at the last token alone: letters 48 %, knowledge 100 %, dictionaries of 8 pairs 90 %.")
md("04-groups-see", r'''
**What to see.** They are needed at the last token and nowhere else. Facts suffer nowhere, and dictionaries lose a tenth.

Enough, too? Let the eight write, at the last token, what they write on *another question*, with other options. If they carry the choice, the answer is the other question's letter:
''')
code("04-groups-swap", r'''
asked_too = zip(prompts[:40], prompts[1:41])
ours, others = zip(*((one, other) for one, other in asked_too if one.answer != other.answer))


def follow_other(group):
    chosen = ga.patch(falcon, group, ours, others).chosen
    return float(np.mean(chosen == [other.answer for other in others]))


swapped = {f"{k} found": follow_other(screened["last"].top(k)) for k in (8, 16)}
swapped["8 drawn, 20 times, at most"] = max(follow_other(drawn(8)) for _ in range(20))
{name: f"{share:.0%}" for name, share in swapped.items()}
''')
code("04-groups-check", r'''
# NBVAL_CHECK_OUTPUT
print("eight off at the last token, letters below 55 %:", channel_groups["last"][1] < 0.55)
print("the worst random group of eight, above 85 %:", min(by_chance[1]) > 0.85)
print("off at all other tokens, within 5 points:",
      eight_off["nothing"]["letters"] - eight_off["all others"]["letters"] < 0.05)
print("swapped, over 70 % follow:", swapped["8 found"] > 0.7,
      "· of any drawn eight, below 25 %:", swapped["8 drawn, 20 times, at most"] < 0.25)
''')
md("04-groups-text", r'''
They do. Exchanged, eight channels of 1,024 decide nearly all answers, sixteen decide all. They lie in the first layer and in the last, though, so they are not one Aggregate head in many pieces. How they share the work, this does not say.

> **The paper, on real models.** In Falcon-Mamba-7B it names four channels of layer 35 as Gather heads and four of layer 36 as Aggregate heads, of 8,192 in each layer.
''')
md("c026", r'''
### Attention and implicit attention, side by side

Now compare, but only heads that do the same work: the Transformer's best head and the Llamba's only one, on the same prompts. How much of the last row goes to the closing tokens of the right option, and how much to those of a wrong one, on average? Beside each a null. For the SSM: the same head's M with C Bᵀ replaced by 1, so that only the decays are left, which know nothing of the question. For attention: a row that attends evenly to everything.
''')
code("c029", r'''
def last_row(lm, head, prompt, null=False):
    """What the last token gives to each earlier one, as shares: [key]."""
    mixer = next(m for m in lm.mixers if m.layer == head.layer)
    if not null:
        return ga.shares(ga.attention_map(lm, prompt, head.layer, [head.head]))[0, -1]
    if mixer.kind == "attention":
        n = lm.encode(prompt).shape[1]
        return torch.ones(n) / n
    scan = ga.scan(lm, prompt, head.layer)
    only_decays = replace(scan, B=torch.ones_like(scan.B), C=torch.ones_like(scan.C))
    return ga.shares(only_decays.matrix([head.head], first=len(scan.x) - 1))[0, 0]
''')
code("c030", r'''
def to_closers(lm, head, null=False):
    """Of each prompt: the share of the right option's closing tokens, and of a wrong one's."""
    found = []
    for e in prompts:
        row, spans = last_row(lm, head, e.prompt, null), ga.segments(lm, e)
        each = [float(row[span.closing].sum()) for span in spans]
        right_one = each.pop(e.answer)
        found.append((right_one, sum(each) / 3))
    return np.array(found).T

i = np.array([share[MODEL][h.layer, h.head] for h in team]).argmax()
picker, ssm_picker = team[i], (candidates(SSM) or sweeps[SSM].top(1))[0]
''')
code("c031", r'''
figure, axes = plt.subplots(1, 2, figsize=(11, 3.3), layout="constrained", sharey=True)
given = {}
nulls = {MODEL: "even", SSM: "decays only"}
for ax, lm, head in zip(axes, (llama, llamba), (picker, ssm_picker)):
    (a, b), (c, d) = to_closers(lm, head), to_closers(lm, head, null=True)
    null = nulls[lm.name]
    given[lm.name] = {"right": a, "a wrong one": b, f"right,\n{null}": c, f"wrong,\n{null}": d}
    ga.plots.means(given[lm.name], "share of the last row", ax)
    ax.set_title(f"{lm.name} {head}", fontsize=11)
''', alt="Left, tiny-llama's head: the right option's closing tokens get 0.96 of the last row, a wrong one's nothing, in an even row 0.05 each. Right, tiny-llamba's head: the right option's get 0.14, a wrong one's 0.07; with decays only both get 0.05.")
code("7ddd7c69", r'''
# NBVAL_CHECK_OUTPUT
def interval(d):
    half = 1.96 * d.std(ddof=1) / len(d) ** 0.5
    return d.mean() - half, d.mean() + half

for name, groups in given.items():
    a, b, c, d = groups.values()
    print(f"{name}: right above wrong:", interval(a - b)[0] > 0,
          "· and in the null:", interval(c - d)[0] > 0.01)
a, b, *_ = given[SSM].values()
print("the SSM's head gives the right option 1.5 times as much or more:",
      a.mean() >= 1.5 * b.mean())
''')
md("c033", r'''
**What to see.** Both heads give the right option's closing tokens more than a wrong one's, and in both nulls there is no difference: it is the question that makes it, not the place. But attention puts its whole row there. The SSM's head puts 0.14 there and 0.07 on each wrong option's: twice as much, and no more. The other options' values come along, and the layers after it must do with the mixture.
''')
code("c032", r'''
def sharp(lm, head):
    maps = (ga.attention_map(lm, e.prompt, head.layer, [head.head]) for e in prompts)
    return np.array([ga.sharpness(A)[0, -1].item() for A in maps])

less = sharp(llama, picker) - sharp(llamba, ssm_picker)
low, high = interval(less)
print(f"the SSM's row is less sharp by {less.mean():.2f}, 95 % interval {low:.2f} to {high:.2f}")
assert low > 0
''')
md("04-paper-smooth", r'''
`ga.sharpness` says the same in one number for each prompt (1: all on one token; 0: even); prompts are the same, so the difference is taken prompt by prompt. It is a statement about *these two heads*, one of which was trained to imitate the layer of the other.

> **The paper, on real models.** Llamba and Falcon-Mamba have Gather and Aggregate heads too, but their implicit attention is smoother than Llama's, so that Aggregate heads pick the right segment less cleanly.

The two pictures, on one question:
''')
code("c034", r'''
tokens = [llamba.tokenizer.decode([i]) for i in llamba.tokenizer(example.prompt).input_ids]
answer = ga.segments(llamba, example)[example.answer]
marks = [(len(tokens) - 1, closer) for closer in answer.closing]
for lm, head in ((llama, picker), (llamba, ssm_picker)):
    pattern = ga.attention_map(lm, example.prompt, head.layer, [head.head])[0]
    ga.plots.pattern(pattern, tokens, f"{lm.name} {head}", marks)
    plt.show()
''', alt=["The Transformer's pattern on one prompt: few dark cells, and in the last row one, at a token that closes the right option, inside the box.", "The SSM's pattern on the same prompt: all rows are tinted by many earlier tokens, positive and negative; in the last row the boxed tokens are dark, and others as well."])
md("04-beside-text", r'''
**What to see.** Boxes mark the tokens that close the right option. In the first picture the last row (`Answer:`) has nearly all its weight on one of them, and most other rows have few dark cells. In the second the last row has weight on these tokens and as much on others, and every row carries a little of everything stored before it, blue and red.

The same, live: choose any two heads, or another prompt.
''')
code("04-beside", r'''
ga.attention_beside([llama, llamba], example.prompt, [picker, ssm_picker])
''')
md("04-gap", r'''
## 6. The skill gap, and what `d_state` has to do with it

An attention head keeps every key and value: its memory grows with the text. An SSM head keeps d_head × d_state numbers, whatever it reads. Four options fit easily. A dictionary of thirty pairs may not.

### Exercise: what is kept

> **Difficulty** ●●○○ · **about 5 minutes** · check: `ga.checks.numbers_kept`

After `n_tokens` tokens, how many numbers does one layer keep: as attention with `n_heads` heads of width `d_head` (its cache), and as an SSM with a state of `d_state` for each of the `n_heads · d_head` channels? Return both as a tuple.
''')
keep("c040"); keep("c041")
code("c042", r'''
pairs = [2, 4, 8, 16, 32]


def kv_curve(lm, n=100):
    return [ga.evaluate(lm, ga.tasks.kv_retrieval(lm, n_pairs=p, n=n, seed=21)) for p in pairs]
''')
keep("04-guess-text"); keep("04-guess")
code("c043", r'''
gap = {name: kv_curve(ga.load_model(name)) for name in (MODEL, SSM, MAMBA2, HYBRID)}
ax = ga.plots.curves(pairs, gap, "pairs in the dictionary", chance=[1 / p for p in pairs])
ga.plots.guess(ax, guess.value, at=32);
''', alt="Accuracy over the number of pairs, 2 to 32: tiny-llama and tiny-zamba2 stay near 100 %. tiny-mamba2 falls to about 30 % and tiny-llamba to about 20 % at 32 pairs, where chance is 3 %.", hide=True)
code("c044", r'''
# NBVAL_CHECK_OUTPUT
at_32 = {name: scores[-1].accuracy for name, scores in gap.items()}
print("at 32 pairs, attention and the hybrid above 95 %:", min(at_32[MODEL], at_32[HYBRID]) > 0.95)
print("both SSMs at least 20 points behind:", max(at_32[SSM], at_32[MAMBA2]) < at_32[MODEL] - 0.2)
behind = [gap[MODEL][i].accuracy - gap[SSM][i].accuracy for i in (0, 2, 4)]
print("and the distilled one falls further back the more pairs there are:",
      behind == sorted(behind))
''')
md("c045", r'''
**What to see.** Attention and the hybrid look up any pair of 32. Both SSMs fall behind, and further the more there is to remember, though both stay far above chance.

> **The paper, on real models.** It traces the gap between recurrent models and Transformers on retrieval tasks to this one ability, held by a few heads; on knowledge tasks the two are level.

Is that gap a matter of the architecture? Before you believe so, look at how these two models came about.

### How long was it trained?

The Llamba was aligned with its teacher layer by layer, and then trained end to end for 1,000 steps, because we stopped there. The same training, stopped earlier and later:
''')
code("04-length", r'''
length = ga.runs("llamba_length")
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharey=True)
of_pairs = {"KV 8": "8 pairs", "KV 16": "16 pairs", "KV 32": "32 pairs"}
for ax, columns in zip(axes, (of_pairs, {"mmlu": "letters", "knowledge": "knowledge"})):
    for (column, name), marker in zip(columns.items(), "osD"):
        ax.plot(length.steps, length[column], marker=marker, label=name)
    for steps, name in ((0, "-unaligned"), (1000, SSM)):
        ax.axvline(steps, ls=":", color=ga.plots.GREY)
        ax.annotate(name, (steps + 20, 0.02), color=ga.plots.GREY, fontsize=9)
    ax.set(xlabel="steps of training end to end", ylim=(0, 1.03))
    ax.legend(frameon=False)
''', alt="Left, accuracy at 8, 16 and 32 pairs over steps of training end to end: 24, 10 and 8 % at 0 steps, 75, 46 and 20 % at 1,000, and still rising. Right, letters rise from 29 to 81 % in 300 steps and to 97 % in 1,000; knowledge is at 100 % throughout.")
md("04-length-see", r'''
**What to see.** Two points of these curves are models that you know: `tiny-llamba-unaligned` at 0 steps and `tiny-llamba` at 1,000, where we stopped. Letters come back quickly, most of them in 300 steps. Dictionaries come slowly, the more slowly the longer they are, and none of these curves has come to rest. So the figure before this one shows what a state can hold *after this much training*. Whoever compares architectures has to say when they stopped, and why.
''')
md("c30ceaa0", r'''
### A larger state

Now `d_state`. Mamba-2 was trained from scratch with different sizes of state on the same text, each until its dictionaries no longer got better, by a rule written down beforehand ([data/README.md](../data/README.md) has it, and the command). All answer the same 300 questions of each kind:
''')
code("04-by-pairs", r'''
KV = [2, 4, 8, 16, 24, 32]


def by_pairs(runs):
    """Accuracy of each run over the number of pairs: [run, pairs]."""
    return [[run[f"KV {n}"].mean() for n in KV] for _, run in runs.iterrows()]
''')
code("04-dots", r'''
def dots(ax, runs, column, tasks):
    """A dot for each run, and a line through the means."""
    for (task, name), marker in zip(tasks.items(), "osD^"):
        found = runs.assign(right=[answers.mean() for answers in runs[task]])
        means = found.groupby(column).right.mean()
        (line,) = ax.plot(means.index, means, marker=marker, label=name)
        ax.plot(found[column], found.right, ".", color=line.get_color(), alpha=0.6)
    ax.set(xlabel=column, xticks=means.index, ylim=(0, 1.03))
    ax.legend(frameon=False)
''')
code("04-grid", r'''
grid = ga.runs("ssm_grid_answers").sort_values(["d_state", "seed"])
figure, (left, beside) = plt.subplots(1, 2, figsize=(12, 3.4), layout="constrained")
lines = {f"d_state {n}": by_pairs(runs) for n, runs in grid.groupby("d_state")}
ga.plots.bands(KV, lines, "pairs in the dictionary", [1 / n for n in KV], left)
dots(beside, grid, "d_state", {"mmlu": "letters", "knowledge": "knowledge"})
''', alt="Left, accuracy over the number of pairs, 2 to 32, for Mamba-2 with d_state 4, 8 and 16, one run each. At 16 pairs 34, 71 and 97 %, at 32 pairs 13, 48 and 85 %. Right, letters and knowledge over d_state: knowledge 100 % everywhere, letters 99, 81 and 99 %.")
md("04-paired-text", r'''
The questions are the same for all, so neighbouring sizes of one seed can be compared question by question, with the paired test of notebook 03:
''')
code("c434e04a", r'''
def compare(task, small, large):
    rows = []
    for seed, runs in grid[grid.d_state.isin([small, large])].groupby("seed"):
        if len(runs) == 2:
            before, after = runs.sort_values("d_state")[task]
            p = ga.checks.paired_p.reference(before.tolist(), after.tolist())
            points = 100 * (after.mean() - before.mean())
            size = f"{small} to {large}"
            rows.append({"d_state": size, "seed": seed, "points": round(points), "p": f"{p:.0e}"})
    return rows
''')
code("04-paired", r'''
d_states = sorted(grid.d_state.unique())
neighbours = list(zip(d_states, d_states[1:]))
paired = {
    task: pd.DataFrame([row for sizes in neighbours for row in compare(task, *sizes)])
    for task in ("KV 16", "mmlu")
}
pd.concat(paired).droplevel(1)
''')
md("14c047dc", r'''
**What to see.** The larger the state, the more pairs it can look up, and no such difference comes about by the choice of questions: p is far below 0.001. That is what a paired test can say about these *models*. It can't say that other seeds would agree, and only one seed is finished so far (the figure draws a band as soon as there are more).

Letters have no such order. The model with `d_state` 8 stopped when its dictionaries had stopped rising, and its letters had not come yet; in the other two they came late, and suddenly. So on letters this figure shows training, on dictionaries the state as well.
''')
md("04-memory-text", r'''
### The same memory

Compared at equal *length*, attention wins. But it also keeps more. So put accuracy against numbers kept, at the end of a dictionary of 16 pairs: SSMs of each `d_state` (state and convolution's cache), the hybrid, and attention. And attention that may keep only *k* of the 16 pairs: what it lacks, it must guess.
''')
code("04-memory", r'''
def kept_per_layer(lm, n_tokens):
    """Numbers that a layer keeps after so many tokens, on average over the layers."""
    count = 0
    for mixer in lm.mixers:
        if mixer.kind == "attention":
            count += 2 * n_tokens * mixer.n_heads * mixer.d_head
        else:
            d_state = ga.scan(lm, "apple", mixer.layer).B.shape[-1]
            channels, _, n_taps = mixer.module.conv1d.weight.shape
            count += mixer.n_heads * mixer.d_head * d_state + (n_taps - 1) * channels
    return count / lm.n_layers
''')
code("04-forget", r'''
def forget(e, k, rng):
    """The same question, but the dictionary has lost all but k of its pairs."""
    head, *lines, question, answer = e.prompt.split("\n")
    kept = sorted(rng.choice(len(lines), k, replace=False))
    prompt = "\n".join([head, *(lines[i] for i in kept), question, answer])
    return replace(e, prompt=prompt)
''')
code("04-sixteen", r'''
sixteen = ga.tasks.kv_retrieval(llama, n_pairs=16, n=150, seed=21)
attention = {}
for k in (1, 2, 4, 8, 12, 16):
    rng = np.random.default_rng(0)
    shortened = [forget(e, k, rng) for e in sixteen]
    n_tokens = llama.encode(shortened[0].prompt).shape[1]
    attention[k] = kept_per_layer(llama, n_tokens), ga.evaluate(llama, shortened).accuracy
''')
code("04-memory-figure", r'''
n_tokens = llama.encode(sixteen[0].prompt).shape[1]
ax = plt.subplots(figsize=(7.5, 3.8), layout="constrained")[1]
ax.plot(*zip(*attention.values()), "o-", label="attention that keeps 1, 2, 4, 8, 12, 16 pairs")
mamba = kept_per_layer(mamba2, n_tokens)
for n, runs in grid.groupby("d_state"):
    size = mamba + (n - scan2.B.shape[-1]) * (scan2.x[0].numel() + 2 * 3)
    reached = [answers.mean() for answers in runs["KV 16"]]
    ax.plot([size] * len(runs), reached, "s", color=ga.plots.ORANGE)
    ax.annotate(f"d_state {n}", (size, max(reached)), (4, 4), textcoords="offset points")
for lm, marker in ((llamba, "D"), (onetap, "v"), (hybrid, "^")):
    at = kept_per_layer(lm, n_tokens), ga.evaluate(lm, sixteen).accuracy
    ax.plot(*at, marker, color=ga.plots.GREEN, label=lm.name)
ax.set(xscale="log", xlabel="numbers kept per layer after 16 pairs", ylabel="16 pairs, accuracy")
ax.legend(frameon=False, fontsize=9);
''', alt="Accuracy at 16 pairs over the numbers a layer keeps, on a logarithmic axis. Attention that keeps 1 to 16 pairs climbs from 12 % at 4,000 numbers to 100 % at 16,000. Mamba-2 with d_state 4 to 32 lies to the left of that line and above it; the two Llambas, with 500 and 1,000 numbers, are at about 43 %; the hybrid is at 100 % with 18,000.")
md("04-memory-see", r'''
**What to see.** At equal memory the picture turns round. With about 5,000 numbers a layer attention can keep two of the sixteen pairs, and is right in a quarter of the questions; Mamba-2 with `d_state` 16 is right in nearly all. A state stores what training found worth storing; a cache stores every token in every head. What attention buys with its memory is certainty: it need not know beforehand what will be asked. And the hybrid pays for both.
''')
md("04-state", r'''
## 7. What the state holds

A state of fixed size: so where in it is the dictionary, and what of it? After the last pair a model has read everything and does not know yet what will be asked. All that goes on from there is the states of its layers, and the convolutions' last three inputs.

### Exchange it

So let it go on from another text's state (`ga.patch_state`). The other text is the same dictionary, with *one* other value: that of the key that will be asked for. Exchanged at the newline that ends the last pair; the question follows. If the answer is the other text's value, it was in what we exchanged. The control: the same with a value of a key that is *not* asked for; then the answer must stay.
''')
code("04-twin", r'''
def twins(n_pairs, n, seed, asked=True):
    """Questions, and the same with another value, of the key asked for or of another one."""
    rng, questions, others = np.random.default_rng(seed), [], []
    for i in range(n):
        keys = rng.choice(NOUNS, n_pairs, replace=False)
        values = rng.choice(NUMBERS, n_pairs + 1, replace=False)  # the last one is the other
        place = i % n_pairs
        changed = place if asked else (place + n_pairs // 2) % n_pairs
        others_values = [values[-1] if j == changed else values[j] for j in range(n_pairs)]
        for out, shown in ((questions, values[:-1]), (others, others_values)):
            lines = "".join(f"{key}: {value}\n" for key, value in zip(keys, shown))
            prompt = f"Dictionary:\n{lines}Question: what is the value of {keys[place]}?\nAnswer:"
            out.append(ga.Example(prompt, tuple(f" {v}" for v in values), place, "kv_retrieval"))
    return questions, others
''')
code("04-exchange", r'''
def end_of_dictionary(e):
    return [3 * (len(e.choices) - 1) + 2]  # "<bos> Dictionary: ⏎", then three tokens a pair
''')
code("04-exchanged", r'''
def exchanged(lm, heads, n_pairs, n, cache="state", **which):
    """Of each question: is the answer the other text's value?"""
    questions, others = twins(n_pairs, n, seed=7, **which)
    score = ga.patch_state(lm, heads, questions, others, end_of_dictionary, cache)
    return score.chosen == n_pairs
''')
code("04-heads-of", r'''
def heads_of(lm, layer):
    return [head for head in ga.alive_heads(lm) if head.layer == layer]
''')
code("04-exchange-figure", r'''
figure, axes = plt.subplots(1, 3, figsize=(12, 2.6), layout="constrained")
moved = {}
for ax, lm in zip(axes, (mamba2, llamba, onetap)):
    moved[lm.name] = {}
    for layer in range(lm.n_layers):
        row = {c: exchanged(lm, heads_of(lm, layer), 8, 32, c).mean() for c in ("state", "conv")}
        row["state, a value\nnot asked for"] = exchanged(
            lm, heads_of(lm, layer), 8, 32, asked=False
        ).mean()
        moved[lm.name][f"layer {layer}"] = row
    ga.plots.table(moved[lm.name], lm.name, ax)
axes[0].set_ylabel("exchanged");
''', alt="Three tables, a row for each layer: answers that follow the other text when the state, the convolution's cache, or a state with a value that is not asked for is exchanged. In tiny-mamba2 one layer moves 94 %, layer 0; in tiny-llamba layer 2 moves 75 %, in tiny-llamba-onetap layer 2 moves 81 %. All other layers and all caches move 3 % or less; values not asked for none to 12 %.")
code("04-exchange-check", r'''
# NBVAL_CHECK_OUTPUT
holding = {name: max(rows, key=lambda row: rows[row]["state"]) for name, rows in moved.items()}
for name, rows in moved.items():
    whole = ga.evaluate(models[name], twins(8, 32, seed=7)[0]).accuracy
    best, *other = sorted((row["state"] for row in rows.values()), reverse=True)
    print(f"{name}: one layer's state moves as many as are right, to 10 points:",
          best > whole - 0.1, "· no other layer's more than 10 %:", max(other) < 0.1)
every = [row for rows in moved.values() for row in rows.values()]
print("the convolution's cache below 10 %:", max(row["conv"] for row in every) < 0.1)
print("the control below 20 %:", max(list(row.values())[2] for row in every) < 0.2)
''')
md("04-exchange-see", r'''
**What to see.** In each model *one* layer's state holds the dictionary. Exchange it, and the answer is the other text's value as often as the model is right at all; exchange any other layer's, and nothing happens. The convolution's cache carries none of it: what it holds are three tokens. Where the other text differs in a value that nobody asks for, the answer stays, with few exceptions in the Llambas, whose small states keep neighbours apart less well.

And heads? The same by single heads of that layer, for three sizes of state:
''')
code("04-exchange-heads", r'''
sizes = {4: ga.load_model("tiny-mamba2-d4"), 8: mamba2, 16: ga.load_model("tiny-mamba2-d16")}
STATE_LAYER = int(holding[MAMBA2].split()[1])
single = {
    f"d_state {n}": {str(h): exchanged(lm, [h], 8, 32).mean() for h in heads_of(lm, STATE_LAYER)}
    | {"all": exchanged(lm, heads_of(lm, STATE_LAYER), 8, 32).mean()}
    for n, lm in sizes.items()
}
rates(single, ["all"], "answers that follow the state of these heads");
''', alt="Answers that follow when the state of one head, or of all four, is exchanged, for d_state 4, 8 and 16. All four heads move 41, 94 and 100 %. One head alone moves 16, 56 and 72 %, the other three 6 % or less.")
md("04-position-text", r'''
**What to see.** Most of the dictionary is in one head's state, whatever its size; the four together hold more than any one.

By position: which of 16 pairs are still there? The asked one in the first, second, third and last quarter of the dictionary, for three sizes of state:
''')
code("04-quarters", r'''
def by_quarter(right):
    """Of 16 pairs, asked for in turn: the mean over the first four, the next four, and so on."""
    quarters = ["1 to 4", "5 to 8", "9 to 12", "13 to 16"]
    return dict(zip(quarters, right.reshape(-1, 4, 4).mean((0, 2))))
''')
code("04-position", r'''
by_position = {}
for size, lm in sizes.items():
    hits = exchanged(lm, heads_of(lm, STATE_LAYER), 16, 128)
    by_position[f"d_state {size}"] = by_quarter(hits)
ga.plots.table(by_position, "answers that follow, by position of the pair");
''', alt="A table of answers that follow the exchanged state, by the quarter of the dictionary in which the asked pair stands. d_state 4: 9 to 31 %, more for later pairs. d_state 8: 59 to 84 %. d_state 16: 91 to 100 %.")
md("04-probe-text", r'''
**What to see.** The smallest state holds few pairs, and those that came last more often. The largest holds nearly all sixteen, early ones as well.

### Read it

The exchange shows that the value is in that state. Can we *read* it there, without the model? A **linear probe**: a matrix, fitted by ridge regression on some dictionaries, that turns the state into a guess; tested on others. Two questions to the same state:

1. *by position*: what is the value of pair number p, whatever its key?
2. *by key*: what is the value of `apple`, wherever it stands?

Dictionaries of 16 pairs; values are ten different numbers, so chance is 10 %. Four keys are in every dictionary, at random places; the others come and go. The control: a probe fitted to shuffled values.
''')
code("04-probe-data", r'''
TRACKED, VALUES = list(NOUNS[:4]), [str(number) for number in range(10, 20)]

def dictionaries(n_pairs, n, seed):
    rng, found = np.random.default_rng(seed), []
    for i in range(n):
        keys = [*rng.choice(NOUNS[4:], n_pairs - 4, replace=False), *TRACKED]
        keys, values = rng.permutation(keys), rng.choice(10, n_pairs)
        lines = "".join(f"{key}: {VALUES[v]}\n" for key, v in zip(keys, values))
        asked = TRACKED[i % 4]
        prompt = f"Dictionary:\n{lines}Question: what is the value of {asked}?\nAnswer:"
        answer = int(values[list(keys).index(asked)])
        choices = tuple(f" {value}" for value in VALUES)
        found.append((ga.Example(prompt, choices, answer, "kv_probe"), list(keys), values))
    return found
''')
code("04-probe", r'''
def probe(states, targets, n_train=500, strength=1e-3):
    """Ridge regression from states [n, numbers] to targets [n], 0 to 9: guesses for the rest."""
    one_hot = torch.nn.functional.one_hot(targets[:n_train], 10).float()
    states = states - states[:n_train].mean(0)
    X, new = states[:n_train], states[n_train:]
    kernel = X @ X.T
    kernel += strength * kernel.diagonal().mean() * torch.eye(n_train)
    return (new @ X.T @ torch.linalg.solve(kernel, one_hot - one_hot.mean(0))).argmax(-1)
''')
code("04-probe-run", r'''
def read_out(lm, n_pairs=16, n=750, n_train=500):
    made = dictionaries(n_pairs, n, seed=8)
    with ga.truncate(lm, STATE_LAYER + 1):
        end = 3 * n_pairs + 2
        states = ga.read_state(lm, [e for e, *_ in made], STATE_LAYER, lambda e: [end]).flatten(1)
    by_position = torch.tensor(np.array([values for *_, values in made]))
    at = torch.tensor([[keys.index(key) for key in TRACKED] for _, keys, _ in made])
    by_key, test = by_position.gather(1, at), slice(n_train, None)
    shuffled = by_key[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    hits = {}
    for name, targets in (("position", by_position), ("key", by_key), ("shuffled", shuffled)):
        guesses = torch.stack([probe(states, column) for column in targets.T], 1)
        hits[name] = (guesses == targets[test]).numpy()
    own = ga.evaluate(lm, [e for e, *_ in made][n_train:]).correct
    return hits, at[test].numpy(), own
''')
code("04-probe-figure", r'''
read_states = {size: read_out(lm) for size, lm in sizes.items()}
figure, axes = plt.subplots(1, 2, figsize=(12, 3.4), layout="constrained", sharey=True)
numbers = np.arange(1, 17)
for (size, (hits, at, own)), marker in zip(read_states.items(), "osD"):
    axes[0].plot(numbers, hits["position"].mean(0), marker=marker, label=f"d_state {size}")
    by_place = [hits["key"][at == p].mean() for p in range(16)]
    axes[1].plot(numbers, by_place, marker=marker, label=f"the model itself: {own.mean():.0%}")
for ax, name in zip(axes, ("by position", "by key")):
    ax.axhline(0.1, ls="--", color=ga.plots.GREY)
    ax.set(title=f"probe {name}", xlabel="which of the 16 pairs", ylim=(0, 1.03), xticks=numbers)
    ax.legend(frameon=False)
axes[0].set_ylabel("values read right");
''', alt="Values that a linear probe reads from the state, for each of 16 pairs and three sizes of state. By position: near chance, 10 to 20 %, for pairs 2 to 13, and 80 to 95 % for the last one. By key: d_state 4 between 27 and 56 %, d_state 8 between 43 and 81 %, d_state 16 between 57 and 85 %.")
code("04-probe-check", r'''
# NBVAL_CHECK_OUTPUT
for size, (hits, *_) in read_states.items():
    middle = hits["position"][:, 2:-4].mean()
    print(f"d_state {size}: shuffled below 15 %:", hits["shuffled"].mean() < 0.15,
          "· by position, pairs 3 to 12 below 30 %:", middle < 0.3)
by_key = [hits["key"].mean() for hits, *_ in read_states.values()]
print("by key, the larger the state, the more is read:", by_key == sorted(by_key))
''')
md("04-probe-see", r'''
**What to see.** Left: asked for a *place* in the dictionary, the probe reads the last two pairs, and hardly any other, at every size. Right: asked for a *key*, it reads far more, from early pairs as well, and the more the larger the state. So the state is no list. Each step adds B times x to it, the key's direction times the value, all on top of one another, and a reader must come with the key. The fewer directions there are, the more values lie on the same one. That is what "a state of fixed size" means.

A probe is a lower bound: five hundred examples, one matrix. What it reads is there; what it doesn't read may be there in another form.
''')
md("c046", r'''
## Recap

- A Mamba layer is a short convolution, a scan and a gate. Written as a matrix over positions, the scan is M = L ∘ (C Bᵀ), its **implicit attention**: linear attention that forgets. It acts on values that the convolution has mixed before.
- In our SSMs **convolutions gather**: letters need them inside the options, in layers below the heads that pick. They are needed at the last token as well, where they reach the end of the question. They are not the only way: in the one-tap model states gather.
- One SSM has an **Aggregate head** by the same floors as a Transformer's, and it was distilled from one. A sibling's head passes the steering test and not the floor. Of the Mamba-2s from scratch none has a head that passes either test. In Mamba-1 eight channels of 1,024 carry the choice at the last token.
- That head picks the right option, softly: twice a wrong one's share, where attention's picks nothing else.
- The **skill gap** grows with the number of pairs, and it closes with training and with `d_state`. At equal memory the SSMs are ahead; attention buys certainty with memory.
- After a dictionary, its values are in **one layer's state**, most of them in one head's, on top of one another and to be had by their keys.
''')
keep("04-progress-text"); keep("progress-04")
md("04-quiz", r'''
## Self-quiz

<details><summary>1. Why has a Mamba-1 layer one matrix for each channel, and Mamba-2 one for each head?</summary>
In Mamba-1 the step size differs by channel and the decay by channel and number of the state. In Mamba-2 all channels of a head share one decay.
</details>
<details><summary>2. M shows that the last token takes nothing from "owl". Is "owl" without any effect on what this head writes?</summary>
No. M acts on what the convolution has mixed, so "owl" is also in the values of the three tokens after it; and the layers below may have moved it anywhere.
</details>
<details><summary>3. A head costs 40 points of letters when it is off. "So it is the Aggregate head." What is missing?</summary>
Where it looks (the right option's share, against chance), where it is needed (at the last token, or somewhere else?), and whether the answer follows when it is steered. Being needed is one of several things.
</details>
<details><summary>4. An SSM looks up 30 % where a Transformer looks up 100 %. Name three reasons that have nothing to do with each other.</summary>
It was trained for a shorter time; its state is small; it keeps a tenth of the numbers that the Transformer keeps, so the comparison is not one at equal memory.
</details>
<details><summary>5. A probe cannot read pair 3's value from the state. Is it lost?</summary>
Not necessarily. Asked by key, the same state gives it; a probe that finds nothing shows only that it cannot be read in this way.
</details>

## References

- Bick, Xing, Gu, ICML 2025, [arXiv 2504.18574](https://arxiv.org/abs/2504.18574)
- Gu, Dao: *Mamba*, 2023, [arXiv 2312.00752](https://arxiv.org/abs/2312.00752) (section 3: what selection is) · Dao, Gu: *Transformers are SSMs* (Mamba-2), ICML 2024, [arXiv 2405.21060](https://arxiv.org/abs/2405.21060) (section 5: the recurrence as masked attention; 6: the algorithm in chunks)
- Lahoti et al.: *Mamba-3*, 2026, [arXiv 2603.15569](https://arxiv.org/abs/2603.15569)
- Arora, Rathi et al.: *Mechanistic Evaluation of Transformers and State Space Models*, 2025, [arXiv 2505.15105](https://arxiv.org/abs/2505.15105)
- Ali, Zimerman, Wolf: *The Hidden Attention of Mamba Models*, 2024, [arXiv 2403.01590](https://arxiv.org/abs/2403.01590)
- Bick et al.: *Llamba*, 2025, [arXiv 2502.14458](https://arxiv.org/abs/2502.14458)
- Arora et al.: *Zoology* (recall in efficient language models), ICLR 2024, [arXiv 2312.04927](https://arxiv.org/abs/2312.04927)

**Next**: [05 Hybrid head replacement](05_hybrid_head_replacement.ipynb)
''')
nb=nbformat.read(OLD,4); nb.cells=cells
for c in nb.cells:
    if c.cell_type=="code": assert all(len(l)<=99 for l in c.source.splitlines()),[l for l in c.source.splitlines() if len(l)>99]
nbformat.write(nb,sys.argv[1] if len(sys.argv)>1 else PATH)
n=[len(c.source.splitlines()) for c in nb.cells if c.cell_type=="code"]
import statistics; print(len(nb.cells),"cells",len(n),"code; median",statistics.median(n),"max",max(n))
