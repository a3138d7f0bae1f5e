p="/tmp/nb05work/cells05.py"; s=open(p).read()
def rep(a,b,n=1):
    global s
    assert s.count(a)>=1, a
    s=s.replace(a,b) if n==0 else s.replace(a,b,n)
rep('''won = pd.DataFrame(one_head).drop("none")
won = share(pd.Series(one_head).map(lambda row: row["none"]), won, 1)  # the teacher: 100 %
print(''','''won = {t: {n: share(row["none"], x, 1.0) for n, x in row.items()} for t, row in one_head.items()}
won = pd.DataFrame(won).drop("none")  # the teacher: 100 %
print(''')
rep('''def heads_of(lm, kind):
    return [ga.Head(m.layer, n) for m in lm.mixers if m.kind == kind for n in m.heads]


silence, prompt_ids = mine_or_reference(silence_last), hybrid.encode(tests[KV][0].prompt)
with ExitStack() as stack, torch.no_grad():
    for m in hybrid.mixers:
        if m.kind == "attention":
            stack.enter_context(m.on_z(lambda z: silence(z, [z.shape[1]])))
    silenced_by_hand = hybrid.model(prompt_ids).logits
with ga.ablate(hybrid, heads_of(hybrid, "attention"), at="last"), torch.no_grad():
    assert torch.allclose(hybrid.model(prompt_ids).logits, silenced_by_hand, atol=1e-5)
''','''def heads_of(lm, kind):
    return [ga.Head(m.layer, n) for m in lm.mixers if m.kind == kind for n in m.heads]


silence, one_prompt = mine_or_reference(silence_last), hybrid.encode(tests[KV][0].prompt)
with ExitStack() as stack, torch.no_grad():
    for m in filter(lambda m: m.kind == "attention", hybrid.mixers):
        stack.enter_context(m.on_z(lambda z: silence(z, [z.shape[1]])))
    silenced = hybrid.model(one_prompt).logits
with ga.ablate(hybrid, heads_of(hybrid, "attention"), at="last"), torch.no_grad():
    assert torch.allclose(hybrid.model(one_prompt).logits, silenced, atol=1e-5)
''')
a=s.index('co("a9f3ee72"'); b=s.index('co("8208aaaa"')
s=s[:a]+'''co("a9f3ee72", \'\'\'
where = {"everywhere": {}, "the last row": {"at": "last"}, "all other rows": {"but": "last"}}


def silent(lm, kind, **where):
    with ga.ablate(lm, heads_of(lm, kind), **where):
        return score(lm, 100)
\'\'\')
co("05-silent", \'\'\'
def experiments(lm):
    whole = {"nothing": score(lm, 100)}
    return {
        name: whole | {place: silent(lm, kind, **at) for place, at in where.items()}
        for name, kind in (("attention", "attention"), ("SSMs", "mamba2"))
    }
\'\'\')
co("05-two-figures", \'\'\'
def two_figures(results):
    axes = plt.subplots(2, 1, figsize=(7, 7.4), layout="constrained")[1]
    for ax, (name, bars) in zip(axes, results.items()):
        ga.plots.grouped_bars(bars, chance=chance, ax=ax)
        ax.set_ylabel(f"accuracy, {name} silent")
    return axes
\'\'\')
md("05-silent-text", \'\'\'
Two kinds, three places each, three tests:
\'\'\')
'''+s[b:]
rep('''zamba = {"attention": silent(hybrid, "attention"), "SSMs": silent(hybrid, "mamba2")}
upper = two_figures(zamba)[0]
ga.plots.guess(upper, guess_row.value, ("the last row", KV));
''','''zamba = experiments(hybrid)
upper, lower = two_figures(zamba)
ga.plots.guess(upper, guess_row.value, ("the last row", KV));
''')
rep('''def shown(results, test, limits):
    values = [results[name][test].accuracy for name in list(results)[1:]]
    print(f"{test:13}", [low <= value <= high for value, (low, high) in zip(values, limits)])


print("attention silent: everywhere, in the last row, in all other rows")
shown(zamba["attention"], KV, [(0, 0.2), (0, 0.2), (0.95, 1)])
shown(zamba["attention"], "letters", [(0.35, 0.7), (0.92, 1), (0.35, 0.7)])
shown(zamba["attention"], "knowledge", [(0.8, 0.97), (0.97, 1), (0.9, 1)])
print("SSMs silent")
shown(zamba["SSMs"], KV, [(0, 0.2), (0, 0.2), (0, 0.2)])
shown(zamba["SSMs"], "letters", [(0, 0.4), (0, 0.4), (0, 0.4)])
shown(zamba["SSMs"], "knowledge", [(0, 0.4), (0.6, 0.9), (0.2, 0.5)])
''','''def quarters(results):  # accuracies to the nearest quarter
    for name, bars in results.items():
        for place, row in bars.items():
            print(f"{name:9} {place:14}", {t: round(4 * r.accuracy) / 4 for t, r in row.items()})


quarters(zamba)
''')
a=s.index('co("05-one-row", '); b=s.index('md("05-one-row-text"')
s=s[:a]+'''co("05-one-row", \'\'\'
def label(m):
    return f"{'attention' if m.kind == 'attention' else 'SSM'}, layer {m.layer}"


def row_silent(lm, m, n=60):
    with ga.ablate(lm, [ga.Head(m.layer, number) for number in m.heads], at="last"):
        return {test: result.accuracy for test, result in score(lm, n).items()}
\'\'\')
co("05-one-row-zamba", \'\'\'
one_row = pd.DataFrame({label(m): row_silent(hybrid, m) for m in hybrid.mixers}).T
(100 * one_row).round(0)
\'\'\')
co("05-one-row-check", \'\'\'
# NBVAL_CHECK_OUTPUT
print("dictionaries below 25 % without", list(one_row.index[one_row[KV] < 0.25]))
print("dictionaries above 95 % without", list(one_row.index[one_row[KV] > 0.95]))
print("letters below 50 % without", list(one_row.index[one_row["letters"] < 0.5]))
\'\'\')
'''+s[b:]
rep('''small = ga.tasks.kv_retrieval(hybrid, n_pairs=4, n=1, seed=3)[0]
donor, place = ask_another(small, random.Random(0))
for ours, theirs in zip(small.prompt.split("\\\\n"), donor.prompt.split("\\\\n")):
    print(f"{ours:45}{theirs}")
print(f"ours: {small.choices[small.answer]}   asks: {small.choices[place]}", end="   ")
print(f"fetched: {donor.choices[donor.answer]}")
''','''small = ga.tasks.kv_retrieval(hybrid, n_pairs=4, n=1, seed=3)[0]
donor, asks = ask_another(small, random.Random(0))
for left, right in zip(small.prompt.split("\\\\n"), donor.prompt.split("\\\\n")):
    print(f"{left:45}{right}")
answers = {"ours": small.answer, "asks": asks, "fetched": donor.answer}
print({name: small.choices[place] for name, place in answers.items()})
''')
a=s.index('co("05-carried", '); b=s.index('md("05-carried-text"')
s=s[:a]+'''co("05-carried", \'\'\'
questions, draw_donors = tests[KV][:60], random.Random(0)
donors, asked = zip(*(ask_another(question, draw_donors) for question in questions))
targets = {
    "ours": [question.answer for question in questions],
    "asks": asked,
    "fetched": [other.answer for other in donors],
}
\'\'\')
co("05-exchanged", \'\'\'
def exchanged(lm, m):
    patched = ga.patch(lm, [ga.Head(m.layer, n) for n in m.heads], questions, donors)
    return {name: np.mean(patched.chosen == target) for name, target in targets.items()}


def carried(lm):
    return pd.DataFrame({label(m): exchanged(lm, m) for m in lm.mixers}).T
\'\'\')
md("05-carried-table-text", \'\'\'
For each mixer of the hybrid, its last row exchanged: how many answers of 60 are ours, follow the donor's question, or are what the donor fetched?
\'\'\')
co("05-carried-figure", \'\'\'
in_zamba = carried(hybrid)
ax = in_zamba.plot.barh(stacked=True, figsize=(7, 3), color=[ga.plots.GREY, ga.plots.BLUE, ga.plots.ORANGE])
ax.invert_yaxis()
ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
ax.set_xlabel("share of the answers");
\'\'\', alt="Stacked bars, one for each of the hybrid's six mixers whose last row was exchanged. SSM of layer 0: all answers follow the donor's question. Attention of layer 1 and SSM of layer 1: all answers are what the donor fetched. The other three: all answers stay.", hidden=True)
co("05-carried-check", \'\'\'
# NBVAL_CHECK_OUTPUT
def jobs(table):  # of which mixers' rows do over 90 % of the answers take what?
    return {name: list(table.index[table[name] > 0.9]) for name in table}


jobs(in_zamba)
\'\'\')
'''+s[b:]
rep('''with ga.replace_layer(student, teacher, best_layer):
    ours = {"attention": silent(student, "attention"), "SSMs": silent(student, "mamba2")}
two_figures(ours);
''','''with ga.replace_layer(student, teacher, best_layer):
    put_together = experiments(student)
two_figures(put_together);
''')
a=s.index('co("05-ours-rows", '); b=s.index('md("72b091b1"')
s=s[:a]+'''co("05-ours-rows", \'\'\'
with ga.replace_layer(student, teacher, best_layer):
    our_rows = pd.DataFrame({label(m): row_silent(student, m) for m in student.mixers}).T
    in_ours = carried(student)
(100 * our_rows).round(0)
\'\'\')
co("abe3add5", \'\'\'
# NBVAL_CHECK_OUTPUT
quarters(put_together)
print("dictionaries below 25 % without", list(our_rows.index[our_rows[KV] < 0.25]))
print(jobs(in_ours))
\'\'\')
'''+s[b:]
rep('''# NBVAL_CHECK_OUTPUT
for role, mixers in roles_of(carried(teacher, tests[KV][:100])).items():
    print(f"over 90 % {role}:", mixers)
''','''# NBVAL_CHECK_OUTPUT
jobs(carried(teacher))
''')
rep('''spared = {}
for n_rows in (1, 4):
    with ga.mask_last_row(hybrid, "attention", n_rows):
        spared[f"last {n_rows} silent"] = ga.evaluate(hybrid, tests["knowledge"])
spared
''','''with ga.mask_last_row(hybrid, "attention", rows=4):
    four_rows = ga.evaluate(hybrid, tests["knowledge"][:100])
four_rows
''')
rep('''seeds = ga.runs("zamba2").set_index("seed")
columns = ["knowledge", "mmlu", "KV 16"]
100 * seeds[[*columns, *(f"{column}, masked" for column in columns)]].round(3)
''','''seeds = ga.runs("zamba2").set_index("seed")
(100 * seeds[[f"{t}{end}" for end in ("", ", masked") for t in ("knowledge", "mmlu", "KV 16")]]).round(0)
''')
# placement
rep('''few, known = tests[KV][:60], {}


def accuracy_of(team):
    key = frozenset(team)
    if key not in known:  # a team that is drawn twice is measured once
        known[key] = with_heads(team, few).accuracy
    return known[key]


ks, draw_teams = [1, 2, 4, 8, 12, 16], random.Random(0)
teams = {k: [draw_teams.sample(heads, k) for _ in range(50)] for k in ks}
''','''few, measured = tests[KV][:40], {}


def kv_of(team):
    key = frozenset(team)
    if key not in measured:  # a team that is drawn twice is measured once
        measured[key] = with_heads(team, few).accuracy
    return measured[key]
''')
rep('''luck = {k: [accuracy_of(team) for team in teams[k]] for k in ks}
ranking = sorted(chosen, key=chosen.get, reverse=True)
ranked = {test: [with_heads(ranking[:k], tests[test][:100]) for k in ks] for test in (KV, "letters")}
''','''ks, draw_teams = [1, 2, 4, 8, 12], random.Random(0)
teams = {k: [draw_teams.sample(heads, k) for _ in range(50)] for k in ks}
luck = {k: [kv_of(team) for team in teams[k]] for k in ks}
''')
rep('''probability, none, both = mine_or_reference(holds_one), accuracy_of([]), accuracy_of(good)
expected = [none + probability(len(heads), len(good), k) * (both - none) for k in ks]
ax = ga.plots.spread(ks, luck.values(), "heads that are attention")
ga.plots.curves(ks, {f"best {test}": row for test, row in ranked.items()}, ax.get_xlabel(), ax=ax)
ax.plot(ks, expected, ":", color="black", lw=2, label="mean of draws, as counted")
ax.plot(ks, [np.mean(luck[k]) for k in ks], "*", color="black", ms=9, label="mean of draws, as drawn")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1));
''','''ax = ga.plots.spread(ks, luck.values(), "heads that are attention")
lines = {f"ranked: {test}": row for test, row in ranked.items()}
ga.plots.curves(ks, lines, "heads that are attention", ax=ax)
ax.plot(ks, expected, ":k", lw=2, label="mean, as counted")
ax.plot(ks, [np.mean(luck[k]) for k in ks], "*k", ms=9, label="mean, as drawn")
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1));
''')
rep('''co("c033", \'\'\'''','''md("05-luck-text", \'\'\'
What the count foretells: a draw with a good head is worth what both good heads are worth, any other draw what none is worth. And the ranking, for KV and for letters:
\'\'\')
co("05-expected", \'\'\'
probability, none, both = mine_or_reference(holds_one), kv_of([]), kv_of(good)
expected = [none + probability(len(heads), len(good), k) * (both - none) for k in ks]
ranking = sorted(chosen, key=chosen.get, reverse=True)
ranked = {t: [with_heads(ranking[:k], tests[t][:100]) for k in ks] for t in (KV, "letters")}
\'\'\')
co("c033", \'\'\'''')
rep('''drawn_teams = [(bool(set(team) & set(good)), accuracy_of(team)) for k in ks for team in teams[k]]
print("teams with a good head, KV above 90 %:", min(a for hit, a in drawn_teams if hit) > 0.9)
print("teams without, KV below 30 %:", max(a for hit, a in drawn_teams if not hit) < 0.3)
off = [abs(np.mean(luck[k]) - e) for k, e in zip(ks, expected)]
print("the means lie within 15 points of what was counted:", max(off) < 0.15)
print("one head, chosen, above 95 %:", ranked[KV][0].accuracy > 0.95)
print("median of 4 drawn heads below 30 %:", np.median(luck[4]) < 0.3)
''','''hits = [kv_of(team) for k in ks for team in teams[k] if set(team) & set(good)]
misses = [kv_of(team) for k in ks for team in teams[k] if not set(team) & set(good)]
print("draws with a good head, above 90 %:", min(hits) > 0.9)
print("draws without, below 30 %:", max(misses) < 0.3)
off = [abs(np.mean(luck[k]) - e) for k, e in zip(ks, expected)]
print("means within 15 points of the count:", max(off) < 0.15)
print("letters, ranked by KV, rise with k:", [0.6 < s.accuracy for s in ranked["letters"]])
''')
rep('''n_tokens, d_head, d_state = ids.shape[1], mixer.d_head, mixer.module.d_state
taps = mixer.module.conv1d.weight.shape[-1]


def numbers_kept(n_attention, n_tokens, d_state=d_state):
    ssm = d_head * d_state + (taps - 1) * (d_head + 2 * d_state)
    return n_attention * 2 * n_tokens * d_head + (len(heads) - n_attention) * ssm


state = student.layers[0].empty_state(batch=1)  # of one layer
assert state.ssm.numel() + state.conv.numel() == numbers_kept(0, n_tokens) / student.n_layers
print(f"{n_tokens} tokens: an SSM layer keeps {numbers_kept(0, n_tokens) // student.n_layers} numbers,")
print(f"a layer of attention {numbers_kept(len(heads), n_tokens) // student.n_layers}")
''','''d_head, d_state = mixer.d_head, mixer.module.d_state
taps, n_tokens = mixer.module.conv1d.weight.shape[-1], ids.shape[1]


def numbers_kept(n_attention, n_tokens=n_tokens, d_state=d_state):
    ssm = d_head * d_state + (taps - 1) * (d_head + 2 * d_state)
    return n_attention * 2 * n_tokens * d_head + (len(heads) - n_attention) * ssm
''')
rep('''co("05-memory", \'\'\'
memory = [numbers_kept(k, n_tokens) for k in ks]
ends = {
    name: [(numbers_kept(k, n_tokens), plain[name][KV].accuracy)]
    for name, k in ((STUDENT, 0), (TRAINED, 0), (MODEL, len(heads)))
}
lines = {
    "best k heads": list(zip(memory, [result.accuracy for result in ranked[KV]])),
    "median of 50 draws": list(zip(memory, [np.median(luck[k]) for k in ks])),
}
label_x = f"numbers kept after {n_tokens} tokens, whole model"
ga.plots.tradeoff(lines | ends, label_x, chance=1 / 16);
\'\'\'''','''md("05-per-layer-text", \'\'\'
Is that what a layer really keeps? And how much is it *a layer*, with attention in none, one and all of its four heads, after a prompt of ours?
\'\'\')
co("05-per-layer", \'\'\'
# NBVAL_CHECK_OUTPUT
state = student.layers[0].empty_state(batch=1)
assert state.ssm.numel() + state.conv.numel() == numbers_kept(0) / student.n_layers
a_head = numbers_kept(0) // len(heads), numbers_kept(len(heads)) // len(heads)
for k in (0, 1, 4):
    print(f"{k} heads of attention, {n_tokens} tokens:", (4 - k) * a_head[0] + k * a_head[1], "a layer")
\'\'\')
co("05-memory", \'\'\'
memory, label_x = list(map(numbers_kept, ks)), f"numbers kept after {n_tokens} tokens, whole model"
whole_models = {STUDENT: 0, TRAINED: 0, MODEL: len(heads)}  # heads of attention
points = {
    "best k heads": list(zip(memory, [result.accuracy for result in ranked[KV]])),
    "median of 50 draws": list(zip(memory, [np.median(luck[k]) for k in ks])),
} | {n: [(numbers_kept(k), plain[n][KV].accuracy)] for n, k in whole_models.items()}
ga.plots.tradeoff(points, label_x, chance=1 / 16);
\'\'\'''')
# sequel
rep('''names = {"none": "no attention", "retrieval": "heads ranked by retrieval", "random": "heads drawn"}
states = sorted(sequel["d_state"].unique())


def over_states(ranking, test):
    rows = sequel[sequel["ranking"] == ranking]
    return rows.pivot(index="seed", columns="d_state", values=test).dropna().to_numpy()


axes = plt.subplots(2, 1, figsize=(6.5, 6.5), layout="constrained", sharex=True)[1]
for ax, (test, luck_level) in zip(axes, {"KV 16": 1 / 16, "mmlu": 0.25}.items()):
    runs = {names[r]: over_states(r, test) for r in names if len(over_states(r, test))}
    ga.plots.bands(states, runs, "d_state", chance=luck_level, ax=ax)
    ax.set_ylabel({"KV 16": "KV, 16 pairs", "mmlu": "letters"}[test])
''','''def over_states(test):
    found = {}
    for name, rows in sequel.groupby("ranking", sort=False):
        table = rows.pivot(index="seed", columns="d_state", values=test).dropna()
        found[f"attention: {name}"] = table[states].to_numpy()
    return found
''')
rep('''\'\'\', alt="Two figures over d_state 2''','''\'\'\')
co("05-sequel-bands", \'\'\'
states, axes = sorted(sequel["d_state"].unique()), plt.subplots(2, 1, figsize=(7, 6.5))[1]
for ax, test, guessing in zip(axes, ("KV 16", "mmlu"), (1 / 16, 0.25)):
    ga.plots.bands(states, over_states(test), "d_state", chance=guessing, ax=ax)
    ax.set_ylabel(f"accuracy, {'letters' if test == 'mmlu' else KV}")
\'\'\', alt="Two figures over d_state 2''')
rep('''mean = sequel.groupby(["ranking", "d_state", "k"], as_index=False)["KV 16"].mean()
points = {
    names[ranking]: [
        (numbers_kept(row["k"], n_tokens, row["d_state"]), row["KV 16"])
        for row in mean[mean["ranking"] == ranking].to_dict("records")
    ]
    for ranking in names if ranking in set(mean["ranking"])
}
ga.plots.tradeoff(points, label_x, chance=1 / 16);
''','''sequel["kept"] = [numbers_kept(k, n_tokens, n) for k, n in zip(sequel["k"], sequel["d_state"])]
mean = sequel.groupby(["ranking", "kept"], sort=False)["KV 16"].mean()
shrunk = {f"attention: {name}": list(mean[name].items()) for name in sequel["ranking"].unique()}
ga.plots.tradeoff(shrunk, label_x, chance=1 / 16);
''')
rep('''co("05-sequel-figure", ''','''md("05-sequel-figure-text", \'\'\'
KV and letters over `d_state`:
\'\'\')
co("05-sequel-figure", ''')
# greedy
rep('''compared = {
    "best of the KV ranking": ranking[:1],
    "two best of the KV ranking": ranking[:2],
    "best alone": best_alone[:1],
    "two best alone": best_alone,
    "greedy": grown,
}
for how, some in compared.items():
    print(f"{how:27}", some, "letters", with_heads(some, tests["letters"]), "KV", with_heads(some, few))
''','''compared = {"best alone": best_alone[:1], "two best alone": best_alone, "greedy": grown}
compared |= {"best by KV": ranking[:1], "two best by KV": ranking[:2]}
reported = {n: with_heads(some, tests["letters"]) for n, some in compared.items()}
for name, some in compared.items():
    print(f"{name:15}", some, "letters", reported[name], f"KV {kv_of(some):.0%}")
''')
rep('''print("together, letters above 80 %:", with_heads(grown, tests["letters"]).accuracy > 0.8)
print("and KV above 95 %:", with_heads(grown, few).accuracy > 0.95)
print("two best of the KV ranking, letters below 70 %:",
      with_heads(ranking[:2], tests["letters"]).accuracy < 0.7)
''','''print("letters above 80 %, KV above 95 %:", reported["greedy"].accuracy > 0.8, kv_of(grown) > 0.95)
print("two best by KV, letters below 70 %:", reported["two best by KV"].accuracy < 0.7)
''')
rep('''choose_letters, tried = ga.tasks.mmlu(student, n=80, seed=31), {}


def letters_of(team):
    key = frozenset(team)
    if key not in tried:
        tried[key] = with_heads(team, choose_letters).accuracy
    return tried[key]


best_alone''','''choose_letters = ga.tasks.mmlu(student, n=80, seed=31)


def letters_of(team):
    return with_heads(team, choose_letters).accuracy


best_alone''')
open(p,"w").write(s)
