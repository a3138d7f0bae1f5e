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
