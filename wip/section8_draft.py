"""Adds section 8, Gated DeltaNet, to notebook 04. Prose marked TODO depends on the final models."""
import nbformat
from nbformat.v4 import new_code_cell as code, new_markdown_cell as md
P='/work/main/notebooks/04_ssm_implicit_attention.ipynb'
nb=nbformat.read(P,4)
ids={c.id for c in nb.cells}
cells=[
md(id='04-delta', source='''## 8. Another way of writing: Gated DeltaNet

Mamba-2 *adds*. What lay along a key before stays there, under the new value, and fades. The linear layers of Qwen3-Next, Qwen3.5 and OLMo Hybrid *overwrite*. They read what the faded state holds at the key, and write only what is missing, or a share β of it:

> h' = α h + β k (v − kᵀ α h)

This is the **delta rule**, here with a decay α: **Gated DeltaNet** (Yang and others, 2025). The key k has length 1. So with β = 1, whoever comes with k afterwards reads v and nothing else. α and β are numbers between 0 and 1 that each token chooses for each head.'''),
md(id='ex-delta_step', source='''### Exercise: one step of the delta rule

> **Difficulty** ●●○○ · **about 5 minutes** · check: `ga.checks.delta_step`

`h` is **[d_state, d_head]** as before, `k` **[d_state]** a vector of length 1, `v` **[d_head]**; `alpha` and `beta` are numbers. Return the next state.'''),
code(id='stub-delta_step', source='''def delta_step(h, alpha, beta, k, v): ...


ga.checks.delta_step(delta_step);'''),
md(id='fold-delta_step', source='''<details><summary>Hint</summary>

Start from `next_state`. What is read with k is a vector over the channels; what is written is an outer product once more.

</details>
<details><summary>Solution</summary>

```python
def delta_step(h, alpha, beta, k, v):
    faded = alpha * h
    return faded + beta * torch.outer(k, v - k @ faded)
```

</details>'''),
md(id='04-delta-toy-text', source='''A key gets a second value. What does a reader find who comes with that key?'''),
code(id='04-delta-toy', source='''add, overwrite = mine_or_reference(next_state), mine_or_reference(delta_step)
key = torch.tensor([0.6, 0.8])
added = written = torch.zeros(2, 1)
for value in (17.0, 23.0):
    added = add(added, 1.0, key, torch.tensor([value]))
    written = overwrite(written, 1.0, 1.0, key, torch.tensor([value]))
print("Mamba-2's way:", (key @ added).item(), " the delta rule:", (key @ written).item())'''),
md(id='04-delta-model-text', source='''`tiny-deltanet` is a `tiny-mamba2-d16` with this layer in place of Mamba-2: the same text, width, heads and size of state, and a convolution of four taps. Your step, token by token, against `ga.attention_map`: the values go in linearly here as well, so there is a matrix. (To get it takes solving a triangular system, as each write depends on those before; [deltanet.py](../ga_utils/models/deltanet.py) derives it.)'''),
code(id='04-delta-matrix', source='''delta, rival = ga.load_model(DELTA), sizes[16]
scan_d = ga.scan(delta, example.prompt, LAYER)
h, read_d = torch.zeros(scan_d.k.shape[-1], scan_d.x.shape[-1]), []
for t, alpha in enumerate(scan_d.log_alpha[:, HEAD].exp()):
    h = overwrite(h, alpha, scan_d.beta[t, HEAD], scan_d.k[t, 0], scan_d.x[t, HEAD])
    read_d.append(scan_d.q[t, 0] @ h)
M_d = ga.attention_map(delta, example.prompt, LAYER, [HEAD])[0]
assert torch.allclose(M_d @ scan_d.x[:, HEAD], torch.stack(read_d), atol=1e-4)'''),
]
