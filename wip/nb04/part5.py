cells.pop()
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
''', alt="TODO probe")
code("04-probe-check", r'''
# NBVAL_CHECK_OUTPUT
for size, (hits, at, own) in read_states.items():
    middle = hits["position"][:, 2:-4].mean()
    print(f"d_state {size}: shuffled below 15 %:", hits["shuffled"].mean() < 0.15,
          "· by position, pairs 3 to 12 below 30 %:", middle < 0.3)
by_key = [hits["key"].mean() for hits, *_ in read_states.values()]
print("by key, the larger the state, the more is read:", by_key == sorted(by_key))
''')
md("04-probe-see", r'''
**What to see.** TODO-probe
''')
md("c046", r'''
## Recap

TODO-recap
''')
keep("04-progress-text"); keep("progress-04")
md("04-quiz", r'''
## Self-quiz

TODO-quiz

## References

TODO-refs

**Next**: [05 Hybrid head replacement](05_hybrid_head_replacement.ipynb)
''')
