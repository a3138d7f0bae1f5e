md("04-state", r'''
## 7. What the state holds

A state of fixed size: so where in it is the dictionary, and what of it? After the last pair a model has read everything and does not know yet what will be asked. All that goes on from there is the states of its layers, and the convolutions' last three inputs.

### Exchange it

So let it go on from another text's state (`ga.patch_state`). The other text is the same dictionary, with *one* other value: that of the key that will be asked for. Exchanged at the newline that ends the last pair; the question follows. If the answer is the other text's value, it was in what we exchanged. The control: the same with a value of a key that is *not* asked for; then the answer must stay.
''')
code("04-twin", r'''
from ga_utils.tasks.world import NOUNS, NUMBERS

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

def exchanged(lm, heads, n_pairs, n, cache="state", **which):
    """Of each question: is the answer the other text's value?"""
    questions, others = twins(n_pairs, n, seed=7, **which)
    score = ga.patch_state(lm, heads, questions, others, end_of_dictionary, cache)
    return score.chosen == n_pairs

def heads_of(lm, layer):
    return [head for head in ga.alive_heads(lm) if head.layer == layer]
''')
code("04-exchange-figure", r'''
figure, axes = plt.subplots(1, 3, figsize=(12, 2.6), layout="constrained")
moved = {}
for ax, lm in zip(axes, (mamba2, llamba, onetap)):
    moved[lm.name] = {}
    for layer in range(lm.n_layers):
        row = {c: exchanged(lm, heads_of(lm, layer), 8, 64, c).mean() for c in ("state", "conv")}
        row["state, a value\nnot asked for"] = exchanged(
            lm, heads_of(lm, layer), 8, 64, asked=False
        ).mean()
        moved[lm.name][f"layer {layer}"] = row
    ga.plots.table(moved[lm.name], lm.name, ax)
axes[0].set_ylabel("exchanged");
''', alt="TODO exchange")
code("04-exchange-check", r'''
# NBVAL_CHECK_OUTPUT
place = {name: max(rows, key=lambda row: rows[row]["state"]) for name, rows in moved.items()}
for name, rows in moved.items():
    whole = ga.evaluate(models[name], twins(8, 64, seed=7)[0]).accuracy
    best, *other = sorted((row["state"] for row in rows.values()), reverse=True)
    print(f"{name}: one layer's state moves as many as are right, to 10 points:",
          best > whole - 0.1, "· no other layer's more than 10 %:", max(other) < 0.1)
every = [row for rows in moved.values() for row in rows.values()]
rest = [share for row in every for case, share in row.items() if case != "state"]
print("the convolution's cache, and the control, at most 10 %:", max(rest) < 0.1)
''')
md("04-exchange-see", r'''
**What to see.** TODO-exchange
''')
code("04-exchange-heads", r'''
sizes = {4: ga.load_model("tiny-mamba2-d4"), 8: mamba2, 16: ga.load_model("tiny-mamba2-d16")}
STATE_LAYER = int(place[MAMBA2].split()[1])
single = {
    f"d_state {n}": {str(h): exchanged(lm, [h], 8, 64).mean() for h in heads_of(lm, STATE_LAYER)}
    | {"all": exchanged(lm, heads_of(lm, STATE_LAYER), 8, 64).mean()}
    for n, lm in sizes.items()
}
rates(single, ["all"], "answers that follow the state of these heads");
''', alt="TODO heads")
md("04-position-text", r'''
By position: which of 16 pairs are still there? The asked one in the first, second, third and last quarter of the dictionary, for three sizes of state:
''')
code("04-position", r'''
def by_quarter(right):
    """Of 16 pairs, asked for in turn: the mean over the first four, the next four, and so on."""
    quarters = ["1 to 4", "5 to 8", "9 to 12", "13 to 16"]
    return dict(zip(quarters, right.reshape(-1, 4, 4).mean((0, 2))))

by_position = {}
for size, lm in sizes.items():
    for cache in ("state", "conv"):
        hits = exchanged(lm, heads_of(lm, STATE_LAYER), 16, 128, cache)
        by_position[f"d_state {size}, {cache}"] = by_quarter(hits)
ga.plots.table(by_position, "answers that follow, by position of the pair");
''', alt="TODO position")
md("04-probe-text", r'''
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
def probe(states, targets, n_train=600, strength=1e-3):
    """Ridge regression from states [n, numbers] to targets [n], 0 to 9: guesses for the rest."""
    one_hot = torch.nn.functional.one_hot(targets[:n_train], 10).float()
    states = states - states[:n_train].mean(0)
    X, new = states[:n_train], states[n_train:]
    kernel = X @ X.T
    kernel += strength * kernel.diagonal().mean() * torch.eye(n_train)
    return (new @ X.T @ torch.linalg.solve(kernel, one_hot - one_hot.mean(0))).argmax(-1)
''')
code("04-probe-run", r'''
def read_out(lm, n_pairs=16, n=900, n_train=600):
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
read = {size: read_out(lm) for size, lm in sizes.items()}
''')
exec(open("/tmp/nb04w/part5.py").read())
