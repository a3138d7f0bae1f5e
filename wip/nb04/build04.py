"""Rebuild notebook 04 from cells; ids of cells that stay are kept."""
import json, re, sys, nbformat
PATH="/work/wt-nb04/notebooks/04_ssm_implicit_attention.ipynb"
old={c["id"]:c for c in nbformat.read(PATH,4).cells}
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
print("u", tuple(u.shape), "x", tuple(scan.x.shape), "B, C", tuple(scan.B.shape),
      "dt", tuple(scan.dt.shape), "z", tuple(z.shape))
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
**What to see.** TODO taps
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
exec(open("/tmp/nb04w/part2.py").read())
nb=nbformat.read(PATH,4); nb.cells=cells
for c in nb.cells:
    if c.cell_type=="code": assert all(len(l)<=99 for l in c.source.splitlines()),[l for l in c.source.splitlines() if len(l)>99]
nbformat.write(nb,sys.argv[1] if len(sys.argv)>1 else PATH)
n=[len(c.source.splitlines()) for c in nb.cells if c.cell_type=="code"]
import statistics; print(len(nb.cells),"cells",len(n),"code; median",statistics.median(n),"max",max(n))
