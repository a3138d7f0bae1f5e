p="/tmp/nb05work/cells05.py"; s=open(p).read()
def rep(a,b,n=1):
    global s
    assert s.count(a)>=1, a
    s=s.replace(a,b) if n==0 else s.replace(a,b,n)

# --- section 1
rep('''def score(lm, n=None):
    return {name: ga.evaluate(lm, examples[:n]) for name, examples in tests.items()}
''','''def score(lm, n=200):
    return {name: ga.evaluate(lm, examples[:n]) for name, examples in tests.items()}
''')
# --- layers
rep('''by_layer = {
    f"layer {layer}": {name: with_layer(layer, examples) for name, examples in tests.items()}
    for layer in layers
}
bars = {"none": plain[STUDENT][KV]} | {name: row[KV] for name, row in by_layer.items()}
ax = ga.plots.bars(bars, chance=1 / 16, highlight=[f"layer {best_layer}"])
ga.plots.guess(ax, guess.value, f"layer {best_layer}");
''','''by_layer = {"none": plain[STUDENT]} | {f"layer {layer}": with_layer(layer) for layer in layers}
kv_bars, star = {name: row[KV] for name, row in by_layer.items()}, f"layer {best_layer}"
ax = ga.plots.bars(kv_bars, chance=1 / 16, highlight=[star])
ga.plots.guess(ax, guess.value, star);
''')
rep('''def with_layer(layer, examples):
    with ga.replace_layer(student, teacher, layer):
        return ga.evaluate(student, examples)


layers = range(student.n_layers)
layer_gain = {layer: with_layer(layer, choose).accuracy for layer in layers}
best_layer = max(layer_gain, key=layer_gain.get)  # chosen on other questions than those below
''','''def with_layer(layer, measure=score):
    with ga.replace_layer(student, teacher, layer):
        return measure(student)


layers = range(student.n_layers)
choosing = {n: with_layer(n, lambda lm: ga.evaluate(lm, choose).accuracy) for n in layers}
best_layer = max(choosing, key=choosing.get)  # chosen on other questions than those below
''')
rep('''co("05-layer-table", \'\'\'
rows = {"none": plain[STUDENT]} | by_layer | {"the teacher": plain[MODEL]}
accuracy_by_layer = pd.DataFrame(
    {name: {test: 100 * row[test].accuracy for test in row} for name, row in rows.items()}
).T
accuracy_by_layer.round(1)
\'\'\')
co("c010", \'\'\'
# NBVAL_CHECK_OUTPUT
share = mine_or_reference(gap_closed)
ends = [accuracy_by_layer.loc[name] for name in ("none", "the teacher")]
closed = accuracy_by_layer[1:-1].apply(lambda row: share(ends[0], row, ends[1]), axis=1)
print("KV: the chosen layer closes over 95 % of the gap:", closed[KV].iloc[best_layer] > 0.95)
print("and every other one less than 10 %:", closed[KV].drop(f"layer {best_layer}").max() < 0.1)
print("letters: no layer closes 60 %:", closed["letters"].max() < 0.6)
print("the chosen layer is the best for letters, too:", closed["letters"].argmax() == best_layer)
\'\'\')
''','''md("05-layer-table-text", \'\'\'
The same as shares of the gap, and for letters as well:
\'\'\')
co("05-layer-table", \'\'\'
share = mine_or_reference(gap_closed)


def closed(result, test):
    return share(*(row[test].accuracy for row in (plain[STUDENT], result, plain[MODEL])))


gaps = pd.DataFrame({n: {t: closed(by_layer[n], t) for t in (KV, "letters")} for n in by_layer}).T
(100 * gaps).round(0)
\'\'\')
co("c010", \'\'\'
# NBVAL_CHECK_OUTPUT
print("KV: the chosen layer closes over 95 % of the gap:", bool(gaps[KV][star] > 0.95))
print("KV: every other one less than 10 %:", bool(gaps[KV].drop(star).max() < 0.1))
print("letters: no layer closes 60 %:", bool(gaps["letters"].max() < 0.6))
print("letters: the chosen layer is the best:", gaps["letters"].idxmax() == star)
\'\'\')
''')
# --- heads
rep('''chosen = {head: with_heads([head], choose).accuracy for head in heads}
least, most = ga.evaluate(student, choose).accuracy, ga.evaluate(teacher, choose).accuracy
good = [head for head in heads if share(least, chosen[head], most) >= 0.5]
best = max(chosen, key=chosen.get)
given_back = {
    test: {str(head): with_heads([head], tests[test]).accuracy for head in heads}
    for test in ("letters", KV)
}
''','''chosen = {head: with_heads([head], choose).accuracy for head in heads}
least, most = (ga.evaluate(lm, choose).accuracy for lm in (student, teacher))
good = [head for head in heads if share(least, chosen[head], most) >= 0.5]
best = max(chosen, key=chosen.get)
''')
rep('''co("c026", \'\'\'
dots = {test: {"none": plain[STUDENT][test].accuracy} | row for test, row in given_back.items()}
rates(dots, ["none", *map(str, good)], "right answers with one head given back");
\'\'\'''','''md("05-given-back-text", \'\'\'
On the other questions, KV and letters, all twenty heads and *none*:
\'\'\')
co("c026", \'\'\'
def given_back(test, n=100):
    found = {str(head): with_heads([head], tests[test][:n]).accuracy for head in heads}
    return {"none": with_heads([], tests[test][:n]).accuracy} | found


one_head = {test: given_back(test) for test in ("letters", KV)}
rates(one_head, ["none", *map(str, good)], "right answers with one head given back");
\'\'\'''')
rep('''start, end = plain[STUDENT], plain[MODEL]
won = {
    test: {n: share(start[test].accuracy, x, end[test].accuracy) for n, x in row.items()}
    for test, row in given_back.items()
}
print("good heads:", len(good), "in layers", sorted({head.layer for head in good}))
print("each closes over 90 % of the gap in KV:", min(won[KV][str(h)] for h in good) > 0.9)
rest = [won[KV][str(head)] for head in heads if head not in good]
print("all others close less than 10 %:", max(rest) < 0.1)
print("heads that close over 15 % in letters:", sum(x > 0.15 for x in won["letters"].values()))
print("the most that one closes in letters is below 40 %:", max(won["letters"].values()) < 0.4)
''','''won = pd.DataFrame(one_head).drop("none")
won = share(pd.Series(one_head).map(lambda row: row["none"]), won, 1)  # the teacher: 100 %
print("good heads:", len(good), "in layers", sorted({head.layer for head in good}))
named = list(map(str, good))
print("KV: each closes over 90 %:", bool(won[KV][named].min() > 0.9))
print("KV: all others less than 10 %:", bool(won[KV].drop(named).max() < 0.1))
print("letters: the most that one closes is below 40 %:", bool(won["letters"].max() < 0.4))
''')
rep('''These two and one of the first layer win a quarter or so of the gap each.''','''These two win a quarter or so of the gap, and no head wins half.''')
# --- slots
rep('''def emptied(gone, add):
    with ExitStack() as stack:
        if add:  # the teacher's best head, in the place of the first that is gone
            swapped = ga.replace_head(student, teacher, best_layer, gone[0].head, best.head)
            stack.enter_context(swapped)
        stack.enter_context(ga.ablate(student, gone))
        return ga.evaluate(student, tests[KV])


own = [head for head in heads if head.layer == best_layer]
places = {f"head {head.head}": [head] for head in own} | {"all of them": own}
''','''def taken_out(gone):
    with ga.ablate(student, gone):
        return ga.evaluate(student, tests[KV][:100])


def best_added(gone):
    with ga.replace_head(student, teacher, best_layer, gone[0].head, teacher_head=best.head):
        return taken_out(gone)
''')
rep('''slots = {
    label: {place: emptied(gone, add) for place, gone in places.items()}
    for label, add in (("only taken out", False), ("the teacher's best head added", True))
}
ax = ga.plots.grouped_bars(slots, chance=dict.fromkeys(places, 1 / 16))
ax.set_xlabel("SSM heads silenced");
''','''own = [head for head in heads if head.layer == best_layer]
places = {f"head {head.head}": [head] for head in own} | {"all four": own}
how = {"only taken out": taken_out, "the teacher's best head added": best_added}
slots = {name: {p: do(gone) for p, gone in places.items()} for name, do in how.items()}
ax = ga.plots.grouped_bars(slots, chance=dict.fromkeys(places, 1 / 16))
ax.set_xlabel("SSM heads silenced");
''')
rep('''print("only taken out, below 25 %:", [s.accuracy < 0.25 for s in slots["only taken out"].values()])
added = slots["the teacher's best head added"]
print("added, above 95 %:", [s.accuracy > 0.95 for s in added.values()])
''','''out, added = ([result.accuracy for result in row.values()] for row in slots.values())
print("only taken out, below 25 %:", [accuracy < 0.25 for accuracy in out])
print("the best head added, above 95 %:", [accuracy > 0.95 for accuracy in added])
''')
# --- needed
rep('''def without(team, test, n=60):
    return with_heads([head for head in heads if head not in team], tests[test][:n]).accuracy


left_out = {"none": [], "the best": [best], "both good ones": good}
draw_pairs = random.Random(0)
for _ in range(20):
    team = draw_pairs.sample(heads, 2)
    left_out.setdefault(" ".join(map(str, team)), team)
''','''def without(team, test, n=50):
    return with_heads([head for head in heads if head not in team], tests[test][:n]).accuracy


draw_pairs, left_out = random.Random(0), {"the best": [best], "both good ones": good}
drawn_pairs = [draw_pairs.sample(heads, 2) for _ in range(20)]
left_out |= {" ".join(map(str, pair)): pair for pair in drawn_pairs}
''')
rep('''needed = {
    test: {name: without(team, test) for name, team in left_out.items()}
    for test in ("letters", KV)
}
rates(needed, ["the best", "both good ones"], "right answers with all heads given back but these");
''','''needed = {t: {n: without(left_out[n], t) for n in left_out} for t in ("letters", KV)}
rates(needed, list(left_out)[:2], "right answers with all heads given back but these");
''')
rep('''drawn_pairs = list(left_out)[3:]
print("KV without both good ones below 25 %:", needed[KV]["both good ones"] < 0.25)
print("without the best alone above 90 %:", needed[KV]["the best"] > 0.9)
print("all draws above 90 %:", min(needed[KV][name] for name in drawn_pairs) > 0.9)
print("letters without both good ones between 50 and 85 %:", 0.5 < needed["letters"]["both good ones"] < 0.85)
''','''without_best, without_both, *draws = needed[KV].values()
print("KV without the best above 90 %:", without_best > 0.9)
print("without both good ones below 25 %:", without_both < 0.25)
print("without two drawn ones above 90 %:", min(draws) > 0.9)
print("letters without both good ones:", 0.5 < needed["letters"]["both good ones"] < 0.9)
''')
rep('print("letters without both good ones:", 0.5','print("letters without both good ones, 50 to 90 %:", 0.5')
# --- trained
rep('''pairs = [2, 4, 8, 16, 32]
dictionaries = {p: ga.tasks.kv_retrieval(student, n_pairs=p, n=150, seed=1) for p in pairs}


def with_best(lm, examples):
    with ga.replace_head(lm, teacher, best.layer, best.head):
        return ga.evaluate(lm, examples)
''','''pairs = [2, 4, 8, 16, 32]
sizes = [ga.tasks.kv_retrieval(student, n_pairs=p, n=150, seed=1) for p in pairs]


def with_best(lm):
    with ga.replace_head(lm, teacher, best.layer, best.head):
        return [ga.evaluate(lm, dictionaries) for dictionaries in sizes]
''')
rep('''by_pairs = {
    "student": [ga.evaluate(student, dictionaries[p]) for p in pairs],
    "student + one head": [with_best(student, dictionaries[p]) for p in pairs],
    "trained on": [ga.evaluate(trained, dictionaries[p]) for p in pairs],
    "trained on + one head": [with_best(trained, dictionaries[p]) for p in pairs],
}
ga.plots.curves''','''by_pairs = {
    "student": [ga.evaluate(student, dictionaries) for dictionaries in sizes],
    "student + one head": with_best(student),
    "trained on": [ga.evaluate(trained, dictionaries) for dictionaries in sizes],
    "trained on + one head": with_best(trained),
}
ga.plots.curves''')
rep('''print("student + one head, above 95 %:", [s.accuracy > 0.95 for s in by_pairs["student + one head"]])
print("trained on, above 85 %:", [s.accuracy > 0.85 for s in by_pairs["trained on"]])
print("trained on, below 35 %:", [s.accuracy < 0.35 for s in by_pairs["trained on"]])
letters = {
    "student": plain[STUDENT]["letters"].accuracy,
    "student + one head": given_back["letters"][str(best)],
    "trained on": plain[TRAINED]["letters"].accuracy,
}
print("letters above 90 %:", {name: x > 0.9 for name, x in letters.items()})
''','''for name, limit in (("student + one head", 0.95), ("trained on", 0.85), ("trained on", 0.35)):
    print(f"{name}, above {limit:.0%}:", [s.accuracy > limit for s in by_pairs[name]])
print("letters above 90 %, student + one head:", one_head["letters"][str(best)] > 0.9)
print("letters above 90 %, trained on:", plain[TRAINED]["letters"].accuracy > 0.9)
''')
open(p,"w").write(s)
