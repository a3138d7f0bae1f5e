md("c035", r'''
## 5. Who aggregates?

An Aggregate head lets the last token pick the right option at the tokens that close it. So three things must be true of it: letters *need* it; of what its last row gives to closing tokens, the *right* option's get clearly more than a quarter; and closing tokens get something worth mentioning at all. Notebook 02 asked for at least 0.4 (above the chance of 0.25) and 0.1. The same for every head of five models, an SSM's row by the sizes of its entries (`ga.shares`), since these may be negative:
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
''', alt="TODO scatter")
code("c038", r'''
# NBVAL_CHECK_OUTPUT
for name in models:
    print(f"{name}: heads that look like an Aggregate head:", len(candidates(name)))
''')
md("c039", r'''
**What to see.** TODO-scatter
''')
md("04-roles-text", r'''
Heads that stand in for one another cost something only as a team (notebook 02). `ga.find_roles` looks for teams among the heads that pass the floors for their looks, so where none passes, there is no team either. For the Llamba, the whole evidence:
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
print("no single head, off at closing tokens, costs half of the letters:",
      bool((gather_alone < 36).all()))
''')
md("04-roles-see", r'''
**What to see.** TODO-roles
''')
md("04-steer-text", r'''
### The proof: steer it

A share among closing tokens may be there by the way. So steer, as in notebook 02: the last row of a head looks at a *wrong* option's closing tokens and nowhere else. Does the answer follow? Every head of the Llamba and of its one-tap sibling by itself, and the Transformer's for comparison, alone and as a team:
''')
code("04-steer", r'''
rng = np.random.default_rng(0)
wrong = np.array([rng.choice([i for i in range(4) if i != e.answer]) for e in prompts])

def follows(lm, heads, n=50):
    asked = prompts[:n]
    to = {e: ga.segments(lm, e)[target].closing for e, target in zip(asked, wrong)}
    return float((ga.steer(lm, heads, asked, to.get).chosen == wrong[:n]).mean())

steered = {
    name: {f"{head}, {name}": follows(lm, [head]) for head in ga.alive_heads(lm)}
    for name, lm in list(models.items())[:3]
}
team = candidates(MODEL)
steered[MODEL]["the team"] = follows(llama, team)
''')
code("04-steer-figure", r'''
best = {name: max(row, key=row.get) for name, row in steered.items()}
rates(steered, list(best.values()), "answers that go to our wrong option");
''', alt="TODO steer")
code("04-steer-check", r'''
# NBVAL_CHECK_OUTPUT
for name in (SSM, ONETAP):
    ranked = sorted(steered[name].values())
    print(f"{name}: one head moves at least 40 %:", ranked[-1] >= 0.4,
          "· any other at most 25 %:", ranked[-2] <= 0.25)
''')
md("04-steer-see", r'''
**What to see.** TODO-steer
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
''', alt="TODO shares")
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
**What to see.** TODO-compare
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
last, answer = len(tokens) - 1, ga.segments(llamba, example)[example.answer]
figure, axes = plt.subplots(1, 2, figsize=(13, 6.5), layout="constrained")
for ax, lm, head in zip(axes, (llama, llamba), (picker, ssm_picker)):
    pattern = ga.attention_map(lm, example.prompt, head.layer, [head.head])[0]
    marks = [(last, closer) for closer in answer.closing]
    ga.plots.pattern(pattern, tokens, f"{lm.name} {head}", marks, ax=ax)
''', alt=old["c034"].metadata["alt"][0])
md("04-beside-text", r'''
**What to see.** Boxes mark the tokens that close the right option. Left, the last row (`Answer:`) has nearly all its weight on one of them, and most other rows have few dark cells. Right, the last row has weight on these tokens and as much on others, and every row carries a little of everything stored before it, blue and red.

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

def kv_curve(lm, n=150):
    return [ga.evaluate(lm, ga.tasks.kv_retrieval(lm, n_pairs=p, n=n, seed=21)) for p in pairs]
''')
keep("04-guess-text"); keep("04-guess")
code("c043", r'''
gap = {name: kv_curve(ga.load_model(name)) for name in (MODEL, SSM, MAMBA2, HYBRID)}
ax = ga.plots.curves(pairs, gap, "pairs in the dictionary", chance=[1 / p for p in pairs])
ga.plots.guess(ax, guess.value, at=32);
''', alt="TODO gap", hide=True)
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
**What to see.** TODO-gap

> **The paper, on real models.** It traces the gap between recurrent models and Transformers on retrieval tasks to this one ability, held by a few heads; on knowledge tasks the two are level.

Is that gap a matter of the architecture? Look at how it came about before you believe so.

### How long was it trained?

The Llamba was aligned with its teacher layer by layer, and then trained end to end for 1,000 steps, because we stopped there. The same training, stopped earlier and later:
''')
code("04-length", r'''
length = ga.runs("llamba_length")
figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained", sharey=True)
of_pairs = {"KV 8": "8 pairs", "KV 16": "16 pairs", "KV 32": "32 pairs"}
for ax, columns in zip(axes, (of_pairs, {"mmlu": "letters", "knowledge": "knowledge"})):
    for (column, name), marker in zip(columns.items(), "osD"):
        mean = length.groupby("steps")[column].mean()
        (line,) = ax.plot(mean.index, mean, marker=marker, label=name)
        ax.plot(length.steps, length[column], ".", color=line.get_color(), alpha=0.6)
    ax.set(xlabel="steps of training end to end", ylim=(0, 1.03))
    ax.legend(frameon=False)
''', alt="TODO length")
md("04-length-see", r'''
**What to see.** TODO-length
''')
md("c30ceaa0", r'''
### A larger state

Now `d_state`. One model of each size would say little: another seed may learn faster. So Mamba-2 was trained from scratch with `d_state` 4, 8, 16 and 32, several seeds each, on the same text, each until its dictionaries no longer got better, by a rule written down beforehand ([data/README.md](../data/README.md)). All of them answer the same 300 questions of each kind:
''')
code("9b34fe60", r'''
grid = ga.runs("ssm_grid_answers").sort_values(["d_state", "seed"])
figure, (left, beside) = plt.subplots(1, 2, figsize=(12, 3.4), layout="constrained")
lines = {f"d_state {n}": by_pairs(runs) for n, runs in grid.groupby("d_state")}
ga.plots.bands(KV, lines, "pairs in the dictionary", [1 / n for n in KV], left)
dots(beside, grid, "d_state", {"mmlu": "letters", "knowledge": "knowledge"})
''', alt="TODO grid")
md("04-paired-text", r'''
The questions are the same for all runs, so each pair of neighbouring sizes can be tested question by question, with the paired test of notebook 03, for each seed by itself. And over seeds, the sign alone: if `d_state` did nothing, each seed would come out either way like a coin.
''')
code("c434e04a", r'''
def compare(task, small, large):
    rows = []
    for seed, runs in grid[grid.d_state.isin([small, large])].groupby("seed"):
        if len(runs) == 2:
            before, after = runs.sort_values("d_state")[task]
            p = ga.checks.paired_p.reference(list(before), list(after))
            points = 100 * (after.mean() - before.mean())
            rows.append({"d_state": f"{small} to {large}", "seed": seed, "points": points, "p": p})
    return rows

d_states = sorted(grid.d_state.unique())
steps = list(zip(d_states, d_states[1:]))
paired = {
    task: pd.DataFrame([row for step in steps for row in compare(task, *step)])
    for task in ("KV 16", "mmlu")
}
paired["KV 16"].round({"points": 0, "p": 4})
''')
code("04-signs", r'''
for task, table in paired.items():
    for step, of in table.groupby("d_state", sort=False):
        print(f"{task}, d_state {step}: better in {(of.points > 0).sum()} of {len(of)} seeds,",
              f"mean {of.points.mean():+.0f} points")
''')
md("14c047dc", r'''
**What to see.** TODO-grid
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

sixteen = ga.tasks.kv_retrieval(llama, n_pairs=16, n=150, seed=21)
attention = {}
for k in (1, 2, 4, 8, 12, 16):
    rng = np.random.default_rng(0)
    asked = [forget(e, k, rng) for e in sixteen]
    n_tokens = llama.encode(asked[0].prompt).shape[1]
    attention[k] = kept_per_layer(llama, n_tokens), ga.evaluate(llama, asked).accuracy
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
''', alt="TODO memory")
md("04-memory-see", r'''
**What to see.** TODO-memory
''')
exec(open("/tmp/nb04w/part4.py").read())
