md("04-conv", r'''
## 4. What is the convolution for?

`ga.ablate_conv(lm)` sets all taps on the past to zero. What still moves from token to token then moves through the state (or, in a hybrid, through attention). Three tests, as in notebook 03: letters, knowledge (facts to complete), and dictionaries of 8 pairs. For scale, beside it: the head that costs letters the most, found on other questions.
''')
code("04-tests", r'''
def tests(lm, n=150, seed=31):
    return {
        "letters": ga.tasks.mmlu(lm, n=n, seed=seed),
        "knowledge": ga.tasks.knowledge(lm, n=n // 2, seed=seed),
        "KV 8": ga.tasks.kv_retrieval(lm, n_pairs=8, n=n, seed=seed),
    }

def accuracies(lm, asked):
    return {name: ga.evaluate(lm, questions).accuracy for name, questions in asked.items()}

def ssm_layers(lm):
    return [mixer.layer for mixer in lm.mixers if mixer.kind != "attention"]
''')
code("04-sweeps", r'''
hybrid = ga.load_model(HYBRID)
ssms = [llamba, mamba2, hybrid]
search = ga.tasks.mmlu(llamba, n=100, seed=32)  # heads are found here, and reported elsewhere
sweeps = {lm.name: ga.sweep_heads(lm, search, progress=False) for lm in (llama, *ssms)}

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
    gone = [row["letters"] < 0.5 and row["knowledge"] > 0.95 for row in alone]
    print(f"{name}: a layer whose convolution letters need and facts don't:", any(gone))
''')
md("04-off-see", r'''
**What to see.** TODO-off
''')
md("04-where-text", r'''
### Where?

A head that is needed may be needed anywhere; notebook 02 asked *where*. So let the heads of one layer write what they would write without its convolution, but only at some tokens; at all others, and in all other layers, everything stays. (`ga.patch`, whose sources are read with the convolution off.) Four places: the words of the options, the tokens that close an option, the question, and the last token.
''')
code("04-where", r'''
def places(lm):
    def words(e):
        return [p for s in ga.segments(lm, e) for p in range(s.start + 2, s.end)]

    def closing(e):
        return sorted(ga.positions(lm, e, "closing"))

    def question(e):
        return range(closing(e)[-1] + 1, ga.positions(lm, e, "last")[0])

    return {"words": words, "closing": closing, "question": question, "last": "last"}

def off_at(lm, layer, asked):
    mixer = next(m for m in lm.mixers if m.layer == layer and m.kind != "attention")
    heads = [ga.Head(layer, number) for number in mixer.heads]
    return {
        name: ga.patch(lm, heads, asked, asked, at, at, None, ga.ablate_conv(lm, [layer])).accuracy
        for name, at in places(lm).items()
    }
''')
code("04-where-figure", r'''
prompts = ga.tasks.mmlu(llamba, n=100, seed=11)
figure, axes = plt.subplots(1, 3, figsize=(13, 2.3), layout="constrained")
where = {}
for ax, lm in zip(axes, ssms):
    where[lm.name] = {f"layer {x}": off_at(lm, x, prompts) for x in ssm_layers(lm)}
    ga.plots.table(where[lm.name], lm.name, ax)
axes[0].set_ylabel("convolution off");
''', alt="Three tables of letters right, one for each model: rows are layers, columns the tokens at which its convolution is off: words, closing, question, last. In tiny-llamba layer 1 is needed at the words and less at closing tokens. In the two others the last layer's convolution is needed at the last token alone.")
code("04-where-check", r'''
# NBVAL_CHECK_OUTPUT
for name in (MAMBA2, HYBRID):
    *others, at_last = list(where[name].values())[-1].values()
    print(f"{name}, last layer: needed at the last token", at_last < 0.5,
          "· and nowhere else", min(others) > off[name]["nothing"]["letters"] - 0.1)
at_words = where[SSM]["layer 1"]
print(f"{SSM}, layer 1: needed most at the words:", min(at_words, key=at_words.get) == "words")
''')
md("04-where-see", r'''
**What to see.** TODO-where
''')
md("04-literature", r'''
> **In the literature.** Arora and others (2025) trained several kinds of models to look up values and asked by interventions where the work is done: Mamba does learn induction, but through its short convolution and not through its SSM; without the convolution it can learn it in the way attention does. Mamba-3 (Lahoti and others, 2026) has no short convolution any more: its recurrence itself takes in the present *and* the previous token at each step, and B and C have biases.

### Fewer taps

What does training make of it when the convolution is short from the start? Mamba-2 with `d_state` 16, trained in the same way with 4, 2 and 1 taps, several seeds each ([data/README.md](../data/README.md)). One tap is no convolution.
''')
code("04-taps-runs", r'''
finished = pd.concat([ga.runs("ssm_conv_answers"), ga.runs("ssm_grid_answers")])
by_taps = finished[finished.d_state == 16]
KV = [2, 4, 8, 16, 24, 32]

def by_pairs(runs):
    """Accuracy of each run over the number of pairs: [run, pairs]."""
    return [[run[f"KV {n}"].mean() for n in KV] for _, run in runs.iterrows()]

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
code("04-taps-figure", r'''
figure, (left, beside) = plt.subplots(1, 2, figsize=(11, 3.4), layout="constrained")
lines = {f"{n} taps": by_pairs(runs) for n, runs in by_taps.groupby("taps", sort=False)}
ga.plots.bands(KV, lines, "pairs in the dictionary", [1 / n for n in KV], left)
dots(beside, by_taps, "taps", {"mmlu": "letters", "knowledge": "knowledge"})
''', alt="TODO")
md("04-taps-runs-see", r'''
**What to see.** TODO-taps-runs
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
for head in sweeps[ONETAP].top(3):
    with ga.ablate(onetap, [head]):
        off_onetap[str(head)] = accuracies(onetap, asked)
''')
code("04-onetap-figure", r'''
figure, (left, beside) = plt.subplots(1, 2, figsize=(11, 2.4), layout="constrained")
ga.plots.table(off_onetap, f"{ONETAP}, switched off:", left)
ga.plots.effects({"letters": sweeps[ONETAP]}, sweeps[ONETAP].top(3), beside);
''', alt="TODO")
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
**What to see.** TODO-onetap
''')
code("04-closing-off", r'''
letters = tests(llamba)["letters"]
for lm in (llama, llamba, onetap, mamba2, hybrid):
    with ga.ablate(lm, ga.alive_heads(lm), at="closing"):
        print(f"{lm.name}, all heads off at closing tokens:", ga.evaluate(lm, letters))
''')
md("04-closing-off-see", r'''
TODO-closing
''')
exec(open("/tmp/nb04w/part3.py").read())
