md("c000", '''
# 05 · Hybrids: give one head back to attention

> **After this notebook you can**
> - give a layer, or a single head, of an SSM back to attention, and show that this was needed *and* enough
> - say which part of a hybrid asks and which part fetches, by silencing rows and by swapping what they carry
> - work out what heads drawn at random would have won, before you praise a choice
> - weigh accuracy against memory
>
> **You need to know**: notebooks 02 and 04
>
> **Time**: 75 minutes, 15 of them for the bonus exercise · **Hardware**: a CPU; two cores are enough

[Course map](../README.md) · [← 04 SSMs: implicit attention](04_ssm_implicit_attention.ipynb) · [Words](00_start_here.ipynb#Words)
''')
keep("e9e2580d")
co("c001", '''
import random
from contextlib import ExitStack

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import ga_utils as ga
from ga_utils.plots.rates import rates
from ga_utils.tasks.pairs import ask_another
''')
keep("f877f057")
co("c002", '''
MODEL = "tiny-llama"
STUDENT, TRAINED = "tiny-llamba-unaligned", "tiny-llamba"
HYBRID = "tiny-zamba2"
''', tags=["parameters"])
md("c003", '''
## 1. An SSM that lost the skill

`tiny-llamba-unaligned` was `tiny-llama`. Its attention layers were exchanged for Mamba-2 layers, each trained, alone, to write what the attention wrote. Everything else was carried over. The layers never practised together.

Its sister `tiny-llamba` went on from there: 1,000 steps of training as a whole, still without any attention. Keep it in mind. Whatever attention repairs below, training may repair as well.

Three tests go along: **knowledge** (facts), **letters** (facts and retrieval), **KV** (retrieval alone). Layers and heads are *chosen* on questions of seed 31; everything reported is about the questions of seed 1.
''')
co("c004", '''
teacher, student, trained = (ga.load_model(name) for name in (MODEL, STUDENT, TRAINED))
KV = "KV, 16 pairs"
tests = {
    "knowledge": ga.tasks.knowledge(student, n=200, seed=1),
    "letters": ga.tasks.mmlu(student, n=200, seed=1),
    KV: ga.tasks.kv_retrieval(student, n_pairs=16, n=200, seed=1),
}
chance = {"knowledge": 0.25, "letters": 0.25, KV: 1 / 16}
choose = ga.tasks.kv_retrieval(student, n_pairs=16, n=100, seed=31)
''')
co("05-helpers", '''
def score(lm, n=200):
    return {name: ga.evaluate(lm, examples[:n]) for name, examples in tests.items()}


def mine_or_reference(function):
    passed = ga.checks.OUTCOMES.get(function.__name__) == "✓"
    return function if passed else getattr(ga.checks, function.__name__).reference
''')
md("05-helpers-text", '''
`mine_or_reference` takes your solution of an exercise where its check passed, and the course's otherwise.
''')
co("c005", '''
plain = {lm.name: score(lm) for lm in (teacher, student, trained)}
ga.plots.grouped_bars(plain, chance=chance);
''', alt="Grouped bars, knowledge, letters and KV retrieval, of the teacher, the student and the student trained on. Knowledge is near 100 % for all three. The student has a third of the letters and about 12 % of KV; trained on, 98 % of the letters and about 37 % of KV.")
co("05-plain-check", '''
# NBVAL_CHECK_OUTPUT
print("knowledge above 95 %:", [row["knowledge"].accuracy > 0.95 for row in plain.values()])
print("letters above 90 %:", [row["letters"].accuracy > 0.9 for row in plain.values()])
print("KV above 90 %:", [row[KV].accuracy > 0.9 for row in plain.values()])
print("KV below 20 %:", [row[KV].accuracy < 0.2 for row in plain.values()])
''')
md("c006", '''
**What to see.** The student knows what its teacher knows. What it lost is retrieval. Training brings all letters back, and a part of the dictionaries.

## 2. Give one layer back

`ga.replace_layer` puts the teacher's layer in the place of the student's, one at a time. If the skill were spread over the depth, no single layer would repair it.
''')
exercise("gap_closed", '''
### Exercise: how much of the gap?

> **Difficulty** ●○○○ · **about 3 minutes** · check: `ga.checks.gap_closed`

Given three accuracies, return the share of the gap between student and teacher that the hybrid closes: 0 if it is no better than the student, 1 if it is as good as the teacher. A hybrid may also be worse than its student, or better than the teacher.
''', "def gap_closed(student, hybrid, teacher):", "What was won, divided by what could be won.", '''
def gap_closed(student, hybrid, teacher):
    return (hybrid - student) / (teacher - student)
''', ("ex-gap_closed", "c007", "c008"))
md("05-guess-text", '''
**Predict, then run.** The student has five SSM layers. Give *one* back to attention, the best one: how many dictionaries of 16 pairs does it then look up right?
''')
co("05-guess", '''
guess = ga.predict("KV with the best single layer given back, in %")
''')
co("05-layers", '''
def with_layer(layer, measure=score):
    with ga.replace_layer(student, teacher, layer):
        return measure(student)


layers = range(student.n_layers)
choosing = {n: with_layer(n, lambda lm: ga.evaluate(lm, choose).accuracy) for n in layers}
best_layer = max(choosing, key=choosing.get)  # chosen on other questions than those below
''')
co("c009", '''
by_layer = {"none": plain[STUDENT]} | {f"layer {layer}": with_layer(layer) for layer in layers}
kv_bars, star = {name: row[KV] for name, row in by_layer.items()}, f"layer {best_layer}"
ax = ga.plots.bars(kv_bars, chance=1 / 16, highlight=[star])
ga.plots.guess(ax, guess.value, star);
''', alt="Bars of KV accuracy of the student as it is and with each single layer given back to attention. Layer 2 takes it to 100 %; with any other it stays where it was, at 12 to 15 %.", hidden=True)
md("05-layer-table-text", '''
The same as shares of the gap, and for letters as well:
''')
co("05-layer-table", '''
share = mine_or_reference(gap_closed)


def closed(result, test):
    return share(*(row[test].accuracy for row in (plain[STUDENT], result, plain[MODEL])))


gaps = pd.DataFrame({n: {t: closed(by_layer[n], t) for t in (KV, "letters")} for n in by_layer}).T
(100 * gaps).round(0)
''')
co("c010", '''
# NBVAL_CHECK_OUTPUT
print("KV: the chosen layer closes over 95 % of the gap:", bool(gaps[KV][star] > 0.95))
print("KV: every other one less than 10 %:", bool(gaps[KV].drop(star).max() < 0.1))
print("letters: no layer closes 60 %:", bool(gaps["letters"].max() < 0.6))
print("letters: the chosen layer is the best:", gaps["letters"].idxmax() == star)
''')
md("c011", '''
**What to see.** One layer stands out. With attention back in that layer, and SSMs in all others, dictionaries are looked up again, all of them. Letters are another matter: no layer brings back much more than half of what was lost, and the one that helps most is another one, the first. So "one layer repairs retrieval" holds for dictionaries, not for everything that retrieves.

> **The paper, on real models.** Unaligned Llamba-8B answers 33 % of MMLU. With layer 17 taken from Llama, and only that, it is 50 %. Layer 17 is where Llama's Aggregate head sits.
''')
md("c020", '''
## 3. Give one head back

A layer is many heads. Is a single one enough? `ga.replace_head` silences one SSM head and lets one of the teacher's attention heads work beside the others: it reads the student's residual stream and writes through the teacher's columns of the output projection.

**What leaves, what stays.** An SSM head is more than its state. With it go its channels of x, B and C with their part of the short convolution, its decay, its shortcut D and its gate: all that lies between the layer's input and the head's columns of the output projection. (In this student every head has a B and a C of its own. Where heads share them, as in many real models, those stay.) The layer's three other SSM heads stay, with *their* convolutions, and so does the student's MLP. So two things happen at once, one is taken out and one is put in. We shall have to tell them apart.
''')
exercise("swap_head", '''
### Exercise: swap a head

> **Difficulty** ●●●○ · **about 8 minutes** · check: `ga.checks.swap_head`

`z` **[pos, n_heads · d_head]** are the student's heads and `W` **[d_model, n_heads · d_head]** its output projection (written to the stream: `z @ W.T`); `z_teacher` and `W_teacher` are the teacher's. Return what the layer writes, **[pos, d_model]**, when the student's head `head` is replaced by the teacher's.
''', "def swap_head(z, W, z_teacher, W_teacher, head, d_head):", '''
Two parts are added. The student's: as ever, but one head is mute. The teacher's: only that head, and it must write with *its own* columns of `W_teacher`, since another model's columns mean other directions.
''', '''
def swap_head(z, W, z_teacher, W_teacher, head, d_head):
    columns = slice(head * d_head, (head + 1) * d_head)
    own = z.clone()
    own[..., columns] = 0
    return own @ W.T + z_teacher[..., columns] @ W_teacher[:, columns].T
''', ("ex-swap_head", "c021", "c022"))
md("05-by-hand-text", '''
Is that what `ga.replace_head` does? We need z of the student's heads, and z of the teacher's heads *on the student's residual stream*: replace the layer, and read it there.
''')
co("05-z", '''
def z_of(lm, layer, ids):
    kept = []
    with lm.mixers[layer].on_z(kept.append), torch.no_grad():
        lm.model(ids)
    return kept[0][0]  # [pos, n_heads * d_head]


ids = student.encode(tests[KV][0].prompt)
z = z_of(student, best_layer, ids)
with ga.replace_layer(student, teacher, best_layer):
    z_teacher = z_of(student, best_layer, ids)
''')
co("05-by-hand", '''
swap, mixer, written = mine_or_reference(swap_head), student.mixers[best_layer], []
W, W_teacher = (lm.mixers[best_layer].out_proj.weight.detach() for lm in (student, teacher))
with ga.replace_head(student, teacher, best_layer, 1), torch.no_grad():
    hook = mixer.module.register_forward_hook(lambda module, args, out: written.append(out[0]))
    student.model(ids)
    hook.remove()
by_hand = swap(z, W, z_teacher, W_teacher, 1, mixer.d_head)
assert torch.allclose(written[0], by_hand, atol=1e-4)
''')
md("c023", '''
Now every head in turn. Which ones are good is decided on the choosing questions: those that close at least half of the gap.
''')
co("c024", '''
heads = ga.alive_heads(student)


def with_heads(team, examples):
    with ExitStack() as stack:
        for head in team:
            stack.enter_context(ga.replace_head(student, teacher, head.layer, head.head))
        return ga.evaluate(student, examples)
''')
co("c025", '''
chosen = {head: with_heads([head], choose).accuracy for head in heads}
least, most = (ga.evaluate(lm, choose).accuracy for lm in (student, teacher))
good = [head for head in heads if share(least, chosen[head], most) >= 0.5]
best = max(chosen, key=chosen.get)
''')
md("05-given-back-text", '''
On the other questions, KV and letters, all twenty heads and *none*:
''')
co("c026", '''
def given_back(test, n=100):
    found = {str(head): with_heads([head], tests[test][:n]).accuracy for head in heads}
    return {"none": with_heads([], tests[test][:n]).accuracy} | found


one_head = {test: given_back(test) for test in ("letters", KV)}
rates(one_head, ["none", *map(str, good)], "right answers with one head given back");
''', alt="Two rows of dots, letters and KV retrieval, one dot for each of twenty heads given back alone. In KV two heads of layer 2 reach 99 and 100 %, all others stay at 12 to 14 %, as with none. In letters the same two reach about 50 %, as does one head of layer 0; the others stay near a third.")
co("c027", '''
# NBVAL_CHECK_OUTPUT
won = {t: {n: share(row["none"], x, 1.0) for n, x in row.items()} for t, row in one_head.items()}
won = pd.DataFrame(won).drop("none")  # the teacher: 100 %
print("good heads:", len(good), "in layers", sorted({head.layer for head in good}))
named = list(map(str, good))
print("KV: each closes over 90 %:", bool(won[KV][named].min() > 0.9))
print("KV: all others less than 10 %:", bool(won[KV].drop(named).max() < 0.1))
print("letters: the most that one closes is below 40 %:", bool(won["letters"].max() < 0.4))
''')
md("c028", '''
**What to see.** In dictionaries, eighteen of twenty heads change nothing. The other two sit in the layer that stood out, and *either* is enough: the teacher's Aggregate team, of which one member will do. In letters no head is enough. These two win a quarter or so of the gap, and no head wins half.

> **The paper, on real models.** A handful of heads hold the skill; hybrids that keep attention just there recover most of it.

### Was it put in, or taken out?

Perhaps the SSM head that left was in the way? Take each SSM head of that layer out and put nothing in. Then add the best head in the place of each of them, whatever its own number. And last, with all four SSM heads of the layer silent:
''')
co("05-slots", '''
def taken_out(gone):
    with ga.ablate(student, gone):
        return ga.evaluate(student, tests[KV][:100])


def best_added(gone):
    with ga.replace_head(student, teacher, best_layer, gone[0].head, teacher_head=best.head):
        return taken_out(gone)
''')
co("05-slots-figure", '''
own = [head for head in heads if head.layer == best_layer]
places = {f"head {head.head}": [head] for head in own} | {"all four": own}
how = {"only taken out": taken_out, "the teacher's best head added": best_added}
slots = {name: {p: do(gone) for p, gone in places.items()} for name, do in how.items()}
ax = ga.plots.grouped_bars(slots, chance=dict.fromkeys(places, 1 / 16))
ax.set_xlabel("SSM heads silenced");
''', alt="Grouped bars of KV accuracy by which SSM head of the layer is silenced: each of four, or all four. Only taken out, KV is between 5 and 16 %. With the teacher's best head added in that place it is 100 % in all five cases.")
co("05-slots-check", '''
# NBVAL_CHECK_OUTPUT
out, added = ([result.accuracy for result in row.values()] for row in slots.values())
print("only taken out, below 25 %:", [accuracy < 0.25 for accuracy in out])
print("the best head added, above 95 %:", [accuracy > 0.95 for accuracy in added])
''')
md("05-slots-text", '''
**What to see.** It was put in. The head works in any place of its layer, and with the layer's own SSM heads all silent, with their convolutions, states and gates. Taking heads out wins nothing. So this is no "replacement": one attention head, *added* at the right depth, is what the student lacked.

### Needed? Attention everywhere else

*Enough* is shown. Is it also *needed*, or would other attention do? Give back every head but the best one; every head but the two good ones; and, as the control, every head but two drawn at random, 20 times.
''')
co("05-needed", '''
def without(team, test, n=50):
    return with_heads([head for head in heads if head not in team], tests[test][:n]).accuracy


draw_pairs, left_out = random.Random(0), {"the best": [best], "both good ones": good}
drawn_pairs = [draw_pairs.sample(heads, 2) for _ in range(20)]
left_out |= {" ".join(map(str, pair)): pair for pair in drawn_pairs}
''')
co("05-needed-figure", '''
needed = {t: {n: without(left_out[n], t) for n in left_out} for t in ("letters", KV)}
rates(needed, list(left_out)[:2], "right answers with all heads given back but these");
''', alt="Two rows of dots, letters and KV retrieval, with attention in all heads but one or two. In KV all draws and all but the best head are at 98 to 100 %; all but both good ones at about 15 %. In letters all but both good ones is at about 70 %, the draws at 93 to 100 %.")
co("05-needed-check", '''
# NBVAL_CHECK_OUTPUT
without_best, without_both, *draws = needed[KV].values()
print("KV without the best above 90 %:", without_best > 0.9)
print("without both good ones below 25 %:", without_both < 0.25)
print("without two drawn ones above 90 %:", min(draws) > 0.9)
print("letters then, 50 to 90 %:", 0.5 < needed["letters"]["both good ones"] < 0.9)
''')
md("05-needed-text", '''
**What to see.** Eighteen heads of attention, and dictionaries are hardly better off than with none: 18 of 20 is not "nearly all" if the wrong two are missing. Neither of the two is needed alone, for the other stands in; together they are. Letters are different once more: the eighteen others bring back more than half of them.

### The counter-control: more training, no attention

A student with one head of attention is better than one without. But is it the *attention*? `tiny-llamba` has none, and 1,000 more steps of training.
''')
co("05-trained", '''
pairs = [2, 4, 8, 16, 32]
sizes = [ga.tasks.kv_retrieval(student, n_pairs=p, n=150, seed=1) for p in pairs]


def with_best(lm):
    with ga.replace_head(lm, teacher, best.layer, best.head):
        return [ga.evaluate(lm, dictionaries) for dictionaries in sizes]
''')
co("05-trained-figure", '''
by_pairs = {
    "student": [ga.evaluate(student, dictionaries) for dictionaries in sizes],
    "student + one head": with_best(student),
    "trained on": [ga.evaluate(trained, dictionaries) for dictionaries in sizes],
    "trained on + one head": with_best(trained),
}
ga.plots.curves(pairs, by_pairs, "pairs in the dictionary", chance=[1 / p for p in pairs]);
''', alt="KV accuracy over the number of pairs, four lines. The student falls from 75 % at 2 pairs to 5 % at 32. With one head of attention it stays at 100 %. Trained on without attention it starts at 98 % and falls to about 18 %. Trained on and given the same head: from 99 % to about 40 %.")
co("05-trained-check", '''
# NBVAL_CHECK_OUTPUT
for name, limit in (("student + one head", 0.95), ("trained on", 0.85), ("trained on", 0.35)):
    print(f"{name}, above {limit:.0%}:", [s.accuracy > limit for s in by_pairs[name]])
print("letters above 90 %, student + one head:", one_head["letters"][str(best)] > 0.9)
print("letters above 90 %, trained on:", plain[TRAINED]["letters"].accuracy > 0.9)
''')
md("05-trained-text", '''
**What to see.** Two repairs, and they repair different things. Training, without any attention, brings back letters (98 %) and short dictionaries, and it runs out: at 32 pairs it has lost most of what it had at 4. One head of attention, without any training, brings back dictionaries of *every* length, and letters only to about one half. What attention adds is not "the skill", it is room: keys and values for each token, where the state has one size.

The same head in `tiny-llamba` helps as well, and less. That model has practised with its own layers, so the head reads a stream that is no longer quite the one that it knows.
''')
md("8967ac0b", '''
## 4. Who asks, who fetches? Rows of a hybrid

A model with attention in some layers and SSMs in the others is a **hybrid**. `tiny-zamba2` was trained as one, from scratch: four Mamba-2 layers, and *one* block of attention that works at two depths (Zamba2's attention blocks are shared like that). Nobody told it which part should retrieve.

Aggregating is the last position's job: it fetches the answer from where it was gathered. So silence one kind of mixer (attention, or the SSMs) everywhere; *only at the last position*, that is, its last row; and everywhere *but* there.
''')
exercise("silence_last", '''
### Exercise: the last row

> **Difficulty** ●●○○ · **about 6 minutes** · check: `ga.checks.silence_last`

`z` is **[batch, pos, channel]**, padded on the right: prompt *i* has `n_tokens[i]` real tokens. Return a copy in which each prompt's last *real* position is zero.
''', "def silence_last(z, n_tokens):", '''
In a batch the prompts end at different places. Where does prompt *i* end, counted from 0? A loop over prompts is fine. And work on a copy.
''', '''
def silence_last(z, n_tokens):
    z = z.clone()
    for i, n in enumerate(n_tokens):
        z[i, n - 1] = 0
    return z
''', ("ex-silence_last", "stub-silence_last", "fold-silence_last"))
co("15363a8e", '''
hybrid = ga.load_model(HYBRID)
[(m.layer, m.kind, m.n_heads) for m in hybrid.mixers]
''')
md("bac3f38e", '''
`ga.ablate(lm, heads, at="last")` does that to the heads of your choice. By hand, for one prompt, it must be the same:
''')
co("d530fa51", '''
def heads_of(lm, kind):
    return [ga.Head(m.layer, n) for m in lm.mixers if m.kind == kind for n in m.heads]


silence, one_prompt = mine_or_reference(silence_last), hybrid.encode(tests[KV][0].prompt)
with ExitStack() as stack, torch.no_grad():
    for m in filter(lambda m: m.kind == "attention", hybrid.mixers):
        stack.enter_context(m.on_z(lambda z: silence(z, [z.shape[1]])))
    silenced = hybrid.model(one_prompt).logits
with ga.ablate(hybrid, heads_of(hybrid, "attention"), at="last"), torch.no_grad():
    assert torch.allclose(hybrid.model(one_prompt).logits, silenced, atol=1e-5)
''')
md("05-guess-row-text", '''
**Predict, then run.** Attention is silent at *one* position, the last. How often is KV retrieval still right? And letters?
''')
co("05-guess-row", '''
guess_row = ga.predict("KV with attention silent at the last position, in %")
''')
co("a9f3ee72", '''
where = {"everywhere": {}, "the last row": {"at": "last"}, "all other rows": {"but": "last"}}


def silent(lm, kind, **where):
    with ga.ablate(lm, heads_of(lm, kind), **where):
        return score(lm, 100)
''')
co("05-silent", '''
def experiments(lm):
    whole = {"nothing": score(lm, 100)}
    return {
        name: whole | {place: silent(lm, kind, **at) for place, at in where.items()}
        for name, kind in (("attention", "attention"), ("SSMs", "mamba2"))
    }
''')
co("05-two-figures", '''
def two_figures(results):
    axes = plt.subplots(2, 1, figsize=(7, 7.4), layout="constrained")[1]
    for ax, (name, bars) in zip(axes, results.items()):
        ga.plots.grouped_bars(bars, chance=chance, ax=ax)
        ax.set_ylabel(f"accuracy, {name} silent")
    return axes
''')
md("05-silent-text", '''
Two kinds, three places each, three tests:
''')
co("8208aaaa", '''
zamba = experiments(hybrid)
upper, lower = two_figures(zamba)
ga.plots.guess(upper, guess_row.value, ("the last row", KV));
''', alt="Two figures of grouped bars, knowledge, letters and KV, for the pretrained hybrid. Attention silent everywhere: KV at chance, letters about 50 %, knowledge 90 %. Only in the last row: KV at chance, letters and knowledge as before. In all but the last row: KV 100 %, letters about 50 %. SSMs silent everywhere: all three at chance. Only in the last row: KV and letters at chance, knowledge about 77 %. In all but the last row: KV and letters at chance, knowledge about a third.", hidden=True)
co("ff334ed7", '''
# NBVAL_CHECK_OUTPUT
def quarters(results):  # accuracies to the nearest quarter
    for name, bars in results.items():
        for place, row in bars.items():
            print(f"{name:9} {place:14}", {t: round(4 * r.accuracy) / 4 for t, r in row.items()})


quarters(zamba)
''')
md("93fcba98", '''
**What to see.** Six experiments, read one by one.

*Attention silent*
- **everywhere**: dictionaries are at chance. Letters fall to a half, and knowledge loses a tenth. By itself this says only that attention is needed for something.
- **the last row**: dictionaries fall just as far. Letters and knowledge do not notice. So dictionaries need *this* row,
- **all but the last row**: and no other. Letters fall to a half, just as with attention silent everywhere: for letters, attention works *earlier*, while the options are read, and its last row does nothing.

*SSMs silent*
- **everywhere**: nothing is left, knowledge included. That is a broken model. It says nothing about retrieval.
- **the last row**: dictionaries *and* letters at chance, and even knowledge loses a quarter.
- **all but the last row**: dictionaries and letters at chance, knowledge nearly.

So for dictionaries the SSMs' last row is needed as much as attention's. "Attention does the retrieving" is not what these bars say. Which SSM is it, and what for?

> **The paper, on real models.** With the last row of Zamba2-7B's attention masked, MMLU falls from 64.3 % to 34.9 %, while knowledge tasks hardly change. There, letters hang on that row. Michalak and Abreu ([arXiv 2510.19861](https://arxiv.org/abs/2510.19861)) switch attention off altogether in RecurrentGemma and Jamba: retrieval falls to 0 %. That is our first bar. It shows that attention is needed, and it cannot show what the SSMs are needed for.
''')
co("e75e4d11", '''
with ga.mask_last_row(hybrid, "attention", rows=4):
    four_rows = ga.evaluate(hybrid, tests["knowledge"][:100])
four_rows
''')
md("8bb2033c", '''
(A fact of several words is scored word by word, and `at="last"` silences only the position where the choices part. With the last *four* rows silent, all words of a fact are predicted without attention: knowledge stays.)

### Mixer by mixer

Silence the last row of one mixer alone:
''')
co("05-one-row", '''
def label(m):
    return f"{'attention' if m.kind == 'attention' else 'SSM'}, layer {m.layer}"


def row_silent(lm, m, n=60):
    with ga.ablate(lm, [ga.Head(m.layer, number) for number in m.heads], at="last"):
        return {test: result.accuracy for test, result in score(lm, n).items()}
''')
co("05-one-row-zamba", '''
one_row = pd.DataFrame({label(m): row_silent(hybrid, m) for m in hybrid.mixers}).T
(100 * one_row).round(0)
''')
co("05-one-row-check", '''
# NBVAL_CHECK_OUTPUT
print("dictionaries below 25 % without", list(one_row.index[one_row[KV] < 0.25]))
print("dictionaries above 95 % without", list(one_row.index[one_row[KV] > 0.95]))
print("letters below 50 % without", list(one_row.index[one_row["letters"] < 0.5]))
''')
md("05-one-row-text", '''
Dictionaries need three rows: the SSM of layer 0, the attention of layer 1, and the SSM of layer 1. The third is no independent witness. In Zamba2 attention does not write into the residual stream, it writes into the Mamba layer above it, which bears the same number; with that SSM's row its output is silent as well. The block of attention comes a second time, in layer 3, with the same weights: there it does nothing for dictionaries.

Letters hang on another row: the SSM of layer 3. Dictionaries do not need that one at all. Two kinds of retrieval, two different mixers that do them.

### What does such a row carry?

Silence says *needed*. To see for what, put in what the row wrote on *another* prompt, a donor. Our donors have the same keys, with their values shuffled, and ask for another key:
''')
co("05-donor", '''
small = ga.tasks.kv_retrieval(hybrid, n_pairs=4, n=1, seed=3)[0]
donor, asks = ask_another(small, random.Random(0))
for left, right in zip(small.prompt.split("\\n"), donor.prompt.split("\\n")):
    print(f"{left:45}{right}")
answers = {"ours": small.answer, "asks": asks, "fetched": donor.answer}
print({name: small.choices[place] for name, place in answers.items()})
''')
md("05-donor-text", '''
Left our prompt, right the donor. Before you run the next cell, say what must come out for a row that carries nothing of importance (**ours**), for one that carries what is *asked* (our dictionary's value of the donor's key: **asks**), and for one that carries what was *found* (the donor's own answer: **fetched**). All three are values of our dictionary, and all different.
''')
co("05-carried", '''
questions, draw_donors = tests[KV][:60], random.Random(0)
donors, asked = zip(*(ask_another(question, draw_donors) for question in questions))
targets = {
    "ours": [question.answer for question in questions],
    "asks": asked,
    "fetched": [other.answer for other in donors],
}
''')
co("05-exchanged", '''
def exchanged(lm, m):
    patched = ga.patch(lm, [ga.Head(m.layer, n) for n in m.heads], questions, donors)
    return {name: np.mean(patched.chosen == target) for name, target in targets.items()}


def carried(lm):
    return pd.DataFrame({label(m): exchanged(lm, m) for m in lm.mixers}).T
''')
md("05-carried-table-text", '''
For each mixer of the hybrid, its last row exchanged: how many answers of 60 are ours, follow the donor's question, or are what the donor fetched?
''')
co("05-carried-figure", '''
in_zamba = carried(hybrid)
colours = [ga.plots.GREY, ga.plots.BLUE, ga.plots.ORANGE]
ax = in_zamba[::-1].plot.barh(stacked=True, figsize=(7, 3), color=colours, width=0.7)
ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
ax.set_xlabel("share of the answers");
''', alt="Stacked bars, one for each of the hybrid's six mixers whose last row was exchanged. SSM of layer 0: all answers follow the donor's question. Attention of layer 1 and SSM of layer 1: all answers are what the donor fetched. The other three: all answers stay.", hidden=True)
co("05-carried-check", '''
# NBVAL_CHECK_OUTPUT
def jobs(table):  # of which mixers' rows do over 90 % of the answers take what?
    return {name: list(table.index[table[name] > 0.9]) for name in table}


jobs(in_zamba)
''')
md("05-carried-text", '''
**What to see.** The SSM of layer 0 *asks*: put its row in from the donor, and the model looks the donor's key up, in *our* dictionary. The attention of layer 1 *fetches*: with its row, the answer is the donor's value, wherever that stands here. The SSM of layer 1 passes that value on, as the wiring says it must. All other mixers change no answer: the control. (What the question asks must come before what is fetched, and it does: layer 0, then layer 1.)

So both kinds are needed, for different steps of one job. Attention alone would not know what to look for.

### The same in the hybrid that we put together

The student with the teacher's best layer is a hybrid too, with attention in one layer only:
''')
co("17404e65", '''
with ga.replace_layer(student, teacher, best_layer):
    put_together = experiments(student)
two_figures(put_together);
''', alt="Two figures of grouped bars for the hybrid put together. Attention silent everywhere, or only in the last row: KV and letters at chance, knowledge above 90 %. In all but the last row: KV 100 %, letters 57 % as with nothing silent. SSMs silent everywhere: all at chance. Only in the last row: KV and letters at chance, knowledge about 83 %. In all but the last row: KV and letters at chance.", hidden=True)
co("05-ours-rows", '''
with ga.replace_layer(student, teacher, best_layer):
    our_rows = pd.DataFrame({label(m): row_silent(student, m) for m in student.mixers}).T
    in_ours = carried(student)
(100 * our_rows).round(0)
''')
co("abe3add5", '''
# NBVAL_CHECK_OUTPUT
quarters(put_together)
print("dictionaries below 25 % without", list(our_rows.index[our_rows[KV] < 0.25]))
print(jobs(in_ours))
''')
md("72b091b1", '''
**What to see.** *Attention silent* everywhere, or in the last row alone: dictionaries at chance, and here letters as well; in all other rows: no loss at all. *SSMs silent* in the last row: dictionaries and letters at chance, just as low as without attention's. Everywhere, or in all other rows, too; but then knowledge goes as well, most of all everywhere.

One might stop at the first figure and say that attention does all the fetching. Or at the second and say that the SSMs matter just as much. Mixer by mixer, only *one* of the four SSM layers is behind the second figure: the first, which lies below attention. The three others may be silent in the last row, and dictionaries stay at 100 %. And the exchange says what that one does: it **asks**. Attention **fetches**. The division of labour is the one of the hybrid that was trained from scratch.

Does asking need an SSM? In the teacher, all of whose layers are attention:
''')
co("05-teacher-roles", '''
# NBVAL_CHECK_OUTPUT
jobs(carried(teacher))
''')
md("05-teacher-roles-text", '''
No: its first layer asks, and the layer that we borrowed fetches. The student's SSM learned the first job from attention, and does it as well. It could not learn the second.

### One model, one seed?

`tiny-zamba2` is one training run. The same recipe with other seeds ([data/README.md](../data/README.md) has the command); *masked* means that attention is silent in the last row:
''')
co("05-seeds", '''
seeds, shown = ga.runs("zamba2").set_index("seed"), ["knowledge", "mmlu", "KV 16"]
(100 * seeds[shown + [f"{test}, masked" for test in shown]]).round(1)
''')
md("05-seeds-text", '''
Read a row from left to right: what the seed has learned, and what is left of it without attention's last row. Hybrids of an earlier world had a second route to a dictionary's value: attention fetched it early, where the key stands in the question, and the SSM layers carried it along. So a seed whose KV stays is no contradiction. It has another route.
''')
md("c029", '''
## 5. Which heads deserve to be attention?

If few heads retrieve, keep those as attention and make the rest SSMs: *retrieval-aware* placement ([arXiv 2602.11374](https://arxiv.org/abs/2602.11374)). Which ones? We have a ranking: what giving each back did for the choosing questions. A ranking deserves praise only if luck does worse, so: k heads drawn at random. How luck will do can be *counted* beforehand.
''')
exercise("holds_one", '''
### Exercise: count before you draw

> **Difficulty** ●●○○ · **about 6 minutes** · check: `ga.checks.holds_one`

Of `n_heads` heads, `n_good` are good. `k` different heads are drawn at random. Return the probability that at least one of them is good.
''', "def holds_one(n_heads, n_good, k):", '''
The opposite is easier: in how many ways can all k come from the others? `math.comb(n, k)` counts the ways to choose k of n.
''', '''
from math import comb

def holds_one(n_heads, n_good, k):
    return 1 - comb(n_heads - n_good, k) / comb(n_heads, k)
''', ("ex-holds_one", "c030", "c031"))
co("c032", '''
few, measured = tests[KV][:40], {}


def kv_of(team):
    key = frozenset(team)
    if key not in measured:  # a team that is drawn twice is measured once
        measured[key] = with_heads(team, few).accuracy
    return measured[key]
''')
co("05-luck", '''
ks, draw_teams = [1, 2, 4, 8, 12], random.Random(0)
teams = {k: [draw_teams.sample(heads, k) for _ in range(50)] for k in ks}
luck = {k: [kv_of(team) for team in teams[k]] for k in ks}
''')
md("05-luck-text", '''
What the count foretells: a draw with a good head is worth what both good heads are worth, any other draw what none is worth. And the ranking, for KV and for letters:
''')
co("05-expected", '''
probability, none, both = mine_or_reference(holds_one), kv_of([]), kv_of(good)
expected = [none + probability(len(heads), len(good), k) * (both - none) for k in ks]
ranking = sorted(chosen, key=chosen.get, reverse=True)
ranked = {t: [with_heads(ranking[:k], tests[t][:100]) for k in ks] for t in (KV, "letters")}
''')
co("c033", '''
ax = ga.plots.spread(ks, luck.values(), "heads that are attention")
lines = {f"ranked: {test}": row for test, row in ranked.items()}
ga.plots.curves(ks, lines, "heads that are attention", ax=ax)
ax.plot(ks, expected, ":k", lw=2, label="mean, as counted")
ax.plot(ks, [np.mean(luck[k]) for k in ks], "*k", ms=9, label="mean, as drawn")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1));
''', alt="Accuracy over the number of heads that are attention. Ranked, KV is at 100 % from one head on, and letters rise from 50 % to nearly all with 16 heads. Of 50 random draws a k, KV is either at about 15 % or at 100 %; the median jumps at 8 heads, and the means follow the curve that was counted.")
co("05-luck-check", '''
# NBVAL_CHECK_OUTPUT
hits = [kv_of(team) for k in ks for team in teams[k] if set(team) & set(good)]
misses = [kv_of(team) for k in ks for team in teams[k] if not set(team) & set(good)]
print("draws with a good head, above 90 %:", min(hits) > 0.9)
print("draws without, below 30 %:", max(misses) < 0.3)
off = [abs(np.mean(luck[k]) - e) for k, e in zip(ks, expected)]
print("means within 15 points of the count:", max(off) < 0.15)
print("letters, ranked by KV, rise with k:", [0.6 < s.accuracy for s in ranked["letters"]])
''')
md("c034", '''
**What to see.** One well-chosen head is enough for dictionaries. A draw is worth as much as the ranking if one of the two good heads is in it, and next to nothing if not; there is nothing in between. So the mean of the draws follows the counted curve, and the median jumps where it passes one half. The band is wide because luck is: with eight heads of twenty, one draw in three still goes home empty.

What the count says in general: with g good heads of n, luck needs about n/g heads. The fewer heads retrieve, the more a ranking is worth. In a real model they are a few of hundreds.

The ranking was made for KV. Its letters rise slowly: it knows nothing of which heads letters need. That question waits until section 7.

### What it costs

Attention keeps a key and a value for every token, in every head. An SSM head keeps its state, and the last inputs of its convolution. Here for a *whole* model of twenty heads:
''')
co("c035", '''
d_head, d_state = mixer.d_head, mixer.module.d_state
taps, n_tokens = mixer.module.conv1d.weight.shape[-1], ids.shape[1]


def numbers_kept(n_attention, n_tokens=n_tokens, d_state=d_state):
    ssm = d_head * d_state + (taps - 1) * (d_head + 2 * d_state)
    return n_attention * 2 * n_tokens * d_head + (len(heads) - n_attention) * ssm
''')
md("05-per-layer-text", '''
Is that what a layer really keeps? And how much is it *a layer*, with attention in none, one and all of its four heads, after a prompt of ours?
''')
co("05-per-layer", '''
# NBVAL_CHECK_OUTPUT
state = student.layers[0].empty_state(batch=1)
assert state.ssm.numel() + state.conv.numel() == numbers_kept(0) / student.n_layers
a_head = numbers_kept(0) // len(heads), numbers_kept(len(heads)) // len(heads)
for k in (0, 1, 4):
    print(f"{k} of 4 heads attention:", (4 - k) * a_head[0] + k * a_head[1], "numbers a layer")
''')
co("05-memory", '''
memory, label_x = list(map(numbers_kept, ks)), f"numbers kept after {n_tokens} tokens, whole model"
whole_models = {STUDENT: 0, TRAINED: 0, MODEL: len(heads)}  # heads of attention
points = {
    "best k heads": list(zip(memory, [result.accuracy for result in ranked[KV]])),
    "median of 50 draws": list(zip(memory, [np.median(luck[k]) for k in ks])),
} | {n: [(numbers_kept(k), plain[n][KV].accuracy)] for n, k in whole_models.items()}
ga.plots.tradeoff(points, label_x, chance=1 / 16);
''', alt="KV accuracy over the numbers that a model keeps, on a logarithmic axis. The best head reaches 100 % at about 9,000 numbers, the median of random draws only at about 34,000. The student without attention is at 12 %, trained on at 37 %, both at 5,000; the teacher is at 100 % with 78,000.")
co("c036", '''
# NBVAL_CHECK_OUTPUT
for length in (n_tokens, 1000):
    part = numbers_kept(1, length) / numbers_kept(len(heads), length)
    print(f"one head of attention of 20, {length} tokens: {part:.0%} of the Transformer's numbers")
''')
md("c037", '''
**What to see.** Up and to the left is good. One well-chosen head takes a model from 12 % to 100 % of dictionaries and from 4,960 numbers to 8,616, a ninth of the Transformer's. Chosen by luck it takes eight heads, four times the memory, for an even chance. `tiny-llamba` stands above the student at the *same* memory: training is free in this figure. And the longer the text, the better the bargain: an SSM head's share does not grow, so after 1,000 tokens one head of attention of twenty costs about a twentieth of twenty.

More heads than one buy no dictionaries. They do buy letters, as the figure before showed.

## 6. The sequel's experiment, small

So far nothing was trained, heads were plugged in. The paper's sequel *distils* such hybrids: rank the heads, keep the best as attention, and train everything else to be SSMs. Then shrink the state, for if attention does the retrieving, what is a large state for?

> **The sequel, on real models** ([arXiv 2602.11374](https://arxiv.org/abs/2602.11374)). With 10 of 512 heads kept as attention, 2 %, a 1B model goes from 13.2 to 99.0 in the authors' retrieval score, and recovers over 95 % of its teacher's performance on retrieval-heavy tasks. With these heads in place the state can be eight times smaller with limited loss, and the whole needs five to six times less memory than comparable hybrids. HydraHead ([arXiv 2606.20097](https://arxiv.org/abs/2606.20097)) goes the same way with linear attention: full attention only on heads that are critical for retrieval.

Ours: three students of `tiny-llama` for each `d_state` (8, 4, 2) and each of three seeds. All mixers are aligned as those of `tiny-llamba-unaligned` were, for a third of the steps. Then no head, the two best of a ranking, or two drawn ones become attention, and the rest is trained on as a whole, 500 steps. (Each `d_state` is trained from the start; the paper's authors do it in their own way.) [data/README.md](../data/README.md) has the command; here are its results.
''')
co("05-sequel", '''
sequel = ga.runs("retrieval_aware")
sequel["k"] = sequel["heads"].fillna("").str.split().str.len()
sequel[["seed", "ranking", "heads"]].drop_duplicates().sort_values(["ranking", "seed"])
''')
md("05-sequel-figure-text", '''
KV and letters over `d_state`:
''')
co("05-sequel-figure", '''
def over_states(test):
    found = {}
    for name, rows in sequel.groupby("ranking", sort=False):
        table = rows.pivot(index="seed", columns="d_state", values=test).dropna()
        found[f"attention: {name}"] = table[states].to_numpy()
    return found
''')
co("05-sequel-bands", '''
states, axes = sorted(sequel["d_state"].unique()), plt.subplots(2, 1, figsize=(7, 7))[1]
for ax, test, guessing in zip(axes, ("KV 16", "mmlu"), (1 / 16, 0.25)):
    ga.plots.bands(states, over_states(test), "d_state", chance=guessing, ax=ax)
    ax.set_ylabel(f"accuracy, {'letters' if test == 'mmlu' else KV}")
''', alt="Two figures over d_state 2, 4 and 8, KV with 16 pairs and letters: bands over seeds for students without attention, with two heads ranked by retrieval, and with two heads drawn at random.")
md("05-sequel-text", '''
**What to see.** The line is the mean over seeds, the band goes from the worst to the best. Ask three things. Does a smaller state cost dictionaries where no head is attention? Does it where the ranked heads are? And do the drawn heads do as well as the ranked ones in any seed? The table above tells which heads were drawn; by the count of section 5, two drawn heads hold a good one in one case of five.
''')
co("05-sequel-memory", '''
sequel["kept"] = [numbers_kept(k, n_tokens, n) for k, n in zip(sequel["k"], sequel["d_state"])]
mean = sequel.groupby(["ranking", "kept"], sort=False)["KV 16"].mean()
shrunk = {f"attention: {name}": list(mean[name].items()) for name in sequel["ranking"].unique()}
ga.plots.tradeoff(shrunk, label_x, chance=1 / 16);
''', alt="KV accuracy over numbers kept, mean over seeds: three points a line, d_state 2, 4 and 8, for students without attention, with two heads ranked by retrieval, and with two heads drawn at random.")
md("05-sequel-memory-text", '''
**What to see.** Each line has three points, `d_state` 2, 4 and 8. Moving left along a line is what shrinking the state saves; the distance between lines is what two heads of attention cost and bring. In a model as small as ours the convolution's inputs weigh more than the state, so a state of a quarter does not save three quarters.
''')
exercise("greedy", '''
## 7. Is the ranking the best choice?

### Exercise: a team, not a list of stars

> **Difficulty** ●●●● · a bonus, skip it freely · **about 15 minutes** · check: `ga.checks.greedy`

The two best heads may be good at the *same* thing; then the second adds nothing. Choose in another way: start with none, and `k` times add the head with which the team so far scores best. `score(list_of_heads)` gives a team's accuracy. Return the `k` heads in the order in which you added them.
''', "def greedy(score, heads, k):", '''
In each round, every head that is not yet in the team is tried *together with* the team. Which one to take is a `max` with a key; then the next round begins from the larger team.
''', '''
def greedy(score, heads, k):
    team = []
    while len(team) < k:
        rest = [head for head in heads if head not in team]
        team.append(max(rest, key=lambda head: score(team + [head])))
    return team
''', ("ex-greedy", "stub-greedy", "fold-greedy"))
md("05-greedy-intro", '''
On dictionaries the first head wins all there is, so we put the question to letters. Teams are chosen on letters of seed 31, and reported on those of seed 1.
''')
co("05-greedy", '''
choose_letters = ga.tasks.mmlu(student, n=80, seed=31)


def letters_of(team):
    return with_heads(team, choose_letters).accuracy


best_alone = sorted(heads, key=lambda head: letters_of([head]), reverse=True)[:2]
grown = mine_or_reference(greedy)(letters_of, heads, 2)
''')
co("05-greedy-result", '''
compared = {"best alone": best_alone[:1], "two best alone": best_alone, "greedy": grown}
compared |= {"best by KV": ranking[:1], "two best by KV": ranking[:2]}
reported = {n: with_heads(some, tests["letters"]) for n, some in compared.items()}
for name, some in compared.items():
    print(f"{name:15}", some, "letters", reported[name], f"KV {kv_of(some):.0%}")
''')
co("05-greedy-check", '''
# NBVAL_CHECK_OUTPUT
print("greedy takes the two best alone:", set(grown) == set(best_alone))
print("they sit in layers", sorted(head.layer for head in grown))
print("letters above 80 %, KV above 95 %:", reported["greedy"].accuracy > 0.8, kv_of(grown) > 0.95)
print("two best by KV, letters below 70 %:", reported["two best by KV"].accuracy < 0.7)
''')
md("05-greedy-text", '''
Greedy and the list of stars choose the same two heads here: one of layer 0 and one of layer 2. They are good at different things, and together they win far more than either. The KV ranking's two best are both of layer 2 and good at the same thing; the second adds next to nothing. So the two dangers are one and the same: a ranking by *one* task knows nothing of the others, and a ranking head by head knows nothing of teams. Greedy guards against the second, at the price of one evaluation for every head in *every* round. Here it won nothing. An idea that must be right can still win nothing; one has to look.

Two heads of twenty, then, serve dictionaries *and* most letters, if they are chosen for both.
''')
md("05-recap", '''
## Recap

- In an SSM distilled from a Transformer, knowledge survives and retrieval suffers. One attention head, added at the right depth, brings back dictionaries of every length. It need not replace anything.
- Either of two heads is enough, and the two together are needed: with attention in all eighteen others, dictionaries stay near chance.
- More training without attention brings back letters and short dictionaries, and runs out of room with long ones.
- In both hybrids an SSM asks and attention fetches. Silencing either in the last row costs all dictionaries; swapping what they write tells them apart.
- Luck can be counted: random heads do as well as the chance that a good one is among them.
- "Which heads" depends on the task. Those that dictionaries need are not all that letters need.
''')
md("05-progress-text", '''
Your exercises in this notebook:
''')
keep("progress-05")
md("05-quiz", '''
## Self-quiz

<details><summary>1. Attention's last row silenced: dictionaries at chance. "So attention does all of the retrieval." What is missing?</summary>
The same test for the SSMs: it costs as much. And a test that tells their jobs apart: with rows exchanged between prompts, one mixer carries what is asked, the other what was fetched.
</details>
<details><summary>2. Why choose the best head on other questions than those it is reported on?</summary>
The best of twenty is partly luck. On fresh questions luck is gone.
</details>
<details><summary>3. Must the teacher's head take the place of the SSM head with its number?</summary>
No. It works in any place of its layer, and with all SSM heads of that layer silent: it is added. What matters is the depth, for there it meets a residual stream that looks like its own.
</details>
<details><summary>4. With attention in all heads but the best one, dictionaries stay at 98 %. Is the best head useless, then?</summary>
No: another head of its layer stands in for it. Leave both out, and 15 % remain.
</details>
<details><summary>5. Someone keeps 8 of 20 heads at random, measures 100 %, and says that the choice of heads hardly matters. What do you answer?</summary>
If two heads are good, 8 of 20 hold one of them in 65 % of all draws. One lucky draw says nothing; show many, or count.
</details>

## References

- Bick, Xing, Gu, ICML 2025, [arXiv 2504.18574](https://arxiv.org/abs/2504.18574)
- Bick, Xing, Gu: *Retrieval-Aware Distillation for Transformer-SSM Hybrids*, 2026, [arXiv 2602.11374](https://arxiv.org/abs/2602.11374)
- Michalak, Abreu: *Some Attention is All You Need for Retrieval*, 2025, [arXiv 2510.19861](https://arxiv.org/abs/2510.19861)
- Tan et al.: *HydraHead: From Head-Level Functional Heterogeneity to Specialized Attention Hybridization*, 2026, [arXiv 2606.20097](https://arxiv.org/abs/2606.20097)
- Geiger, Lu, Icard, Potts: *Causal Abstractions of Neural Networks*, 2021 (exchanging what a part writes), [arXiv 2106.02997](https://arxiv.org/abs/2106.02997)
- Glorioso et al.: *The Zamba2 Suite*, 2024, [arXiv 2411.15242](https://arxiv.org/abs/2411.15242)
- Bick et al.: *Transformers to SSMs* (MOHAWK), NeurIPS 2024, [arXiv 2408.10189](https://arxiv.org/abs/2408.10189)

That was the last one. **Back to the** [course map](../README.md)
''')
