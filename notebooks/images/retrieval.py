"""Draw the README's picture, retrieval.svg, from the model itself: `python notebooks/images/retrieval.py`.

Left: a question, and the attention of the heads that gather an option's words and its letter, and of one
Aggregate head, as arrows as wide as the weight (of the heads that gather words, the largest).
Right: the points of accuracy lost with each head switched off. The Aggregate heads stand in for one another,
so none shows there; below, they are switched off together, with knowledge as a control.
"""

from html import escape
from math import isnan
from pathlib import Path

import torch

import ga_utils as ga

LETTER_HEAD, WORD_HEADS = ga.Head(1, 2), [ga.Head(0, 0), ga.Head(0, 1), ga.Head(0, 3)]
AGGREGATE = ga.Head(2, 0)
TEAM = [AGGREGATE, ga.Head(2, 1), ga.Head(2, 2)]
LEAST = 0.1  # attention weights below this are not drawn
LETTER, GAP, ROW, HEIGHT = 10.2, 9, 62, 26  # sizes of the prompt's tokens and lines
CELL = 47  # size of a cell of the heat map

STYLE = """
svg { font: 17px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.say { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; font-size: 15.5px }
.page { fill: #fbfaf7; stroke: #dcd8cf }
text { fill: #24292f } .soft { fill: #66707b } .loss { fill: #b3261e }
.token { fill: #fff; stroke: #cfcac0 } .pruned { fill: none; stroke: #cfcac0; stroke-dasharray: 3 3 }
path, .frame { fill: none } .gather { stroke: #2563c9 } .aggregate { stroke: #d2650c }
.gather.tip { fill: #2563c9; stroke: none } .aggregate.tip { fill: #d2650c; stroke: none }
text.gather { fill: #2563c9; stroke: none } text.aggregate { fill: #b9560a; stroke: none }
@media (prefers-color-scheme: dark) {
  .page { fill: #1a1e24; stroke: #363d47 }
  text { fill: #e6e8eb } .soft { fill: #9aa4b0 } .loss { fill: #ff6b5e }
  .token { fill: #262c35; stroke: #4a525e } .pruned { stroke: #4a525e }
  .gather { stroke: #6ea8fe } .aggregate { stroke: #ff9a47 }
  .gather.tip, text.gather { fill: #6ea8fe } .aggregate.tip, text.aggregate { fill: #ff9a47 }
}"""

TIPS = "\n".join(
    f'<marker id="{kind}" viewBox="0 0 10 10" refX="4" refY="5" markerWidth="14" markerHeight="14" '
    f'markerUnits="userSpaceOnUse" orient="auto"><path class="{kind} tip" d="M1 1 L9 5 L1 9 Z"/></marker>'
    for kind in ("gather", "aggregate")
)


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, more: str = "") -> str:
    size = f'x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="4"'
    return f'<rect class="{kind}" {size} {more}/>'


def arrow(kind: str, weight: float, *points: float) -> str:
    """A curve through four points x, y, as wide as `weight`; the two in the middle are where it bends to."""
    x0, y0, x1, y1, x2, y2, x3, y3 = (round(p) for p in points)
    curve = f"M{x0} {y0} C{x1} {y1} {x2} {y2} {x3} {y3}"
    return f'<path class="{kind}" stroke-width="{1 + 6 * weight:.1f}" marker-end="url(#{kind})" d="{curve}"/>'


def place_tokens(words: list[str], x: float, y: float) -> list[tuple[float, float, float]]:
    """Left edge, upper edge and width of each token: a line of the prompt a row."""
    places, left, top = [], x, y
    for word in words:
        places.append((left, top, len(word) * LETTER + 8))
        left += places[-1][2] + GAP
        if word == "⏎":
            left, top = x, top + ROW
    return places


def gather_arrows(attention, segments, places) -> list[str]:
    """From each option's letter and words to the token after its line."""
    arrows = []
    for segment in segments:
        closer = segment.end + 1
        left, top, width = places[closer]
        to_x, to_y = left + width / 2 + 4, top - 3
        for i in range(segment.start, closer):
            x, y = places[i][0] + places[i][2] / 2, places[i][1] + HEIGHT + 1
            if (weight := float(attention[closer, i])) >= LEAST:
                arrows.append(arrow("gather", weight, x, y, x, y + 30, to_x + 6, to_y - 34, to_x, to_y))
    return arrows


def aggregate_arrows(attention, segments, places) -> list[str]:
    """From the two tokens that close an option, its newline and the token after it, to the last token."""
    arrows = []
    left, top, width = places[-1]
    for end, after in (segment.closing for segment in segments):
        if (weight := float(attention[-1, end])) >= LEAST:
            x, y = places[end][0] + places[end][2] + 2, places[end][1] + HEIGHT / 2
            to_x, to_y = left + width - 12, top - 7
            arrows.append(arrow("aggregate", weight, x, y, x + 70, y + 10, to_x + 90, to_y - 10, to_x, to_y))
        if (weight := float(attention[-1, after])) >= LEAST:
            x, y, to_x, to_y = places[after][0] - 3, places[after][1] + HEIGHT / 2, left - 9, top + HEIGHT / 2
            bend = 24 + 0.18 * (to_y - y)
            arrows.append(arrow("aggregate", weight, x, y, x - bend, y, to_x - bend, to_y, to_x, to_y))
    return arrows


def prompt_panel(lm, question, x: float, y: float) -> list[str]:
    ids = lm.tokenizer(question.prompt).input_ids
    words = [lm.tokenizer.decode([i]).strip(" ").replace("\n", "⏎") for i in ids]
    places = [(0, 0, 0), *place_tokens(words[1:], x, y)]  # <bos> is not drawn
    gathering = [LETTER_HEAD, *WORD_HEADS]
    maps = [ga.attention_map(lm, question.prompt, head.layer, [head.head])[0] for head in gathering]
    gather = torch.stack(maps).amax(0)
    aggregate = ga.attention_map(lm, question.prompt, AGGREGATE.layer)[AGGREGATE.head]
    segments = ga.segments(lm, question)
    drawn = gather_arrows(gather, segments, places) + aggregate_arrows(aggregate, segments, places)
    for word, (left, top, width) in list(zip(words, places))[1:]:
        drawn.append(box(left, top, width, HEIGHT, "token"))
        drawn.append(text(left + width / 2, top + 19, word, "soft" if word == "⏎" else "", "middle"))
    answer = question.choices[question.answer].strip()
    return [*drawn, text(left + width + 14, top + 19, f"→ {answer}", "aggregate")]


def sweep_panel(drop, x: float, y: float) -> list[str]:
    """The heat map of a sweep, layer 0 at the bottom."""
    n_layers, n_heads = drop.shape
    drawn = []
    for layer in range(n_layers):
        top = y + (n_layers - 1 - layer) * CELL
        drawn.append(text(x - 8, top + CELL / 2 + 5, f"L{layer}", "soft say", "end"))
        for head in range(n_heads):
            lost, place = float(drop[layer, head]), (x + head * CELL + 1, top + 1, CELL - 2, CELL - 2)
            if isnan(lost):
                drawn.append(box(*place, "pruned"))
                continue
            drawn += [box(*place, "token"), box(*place, "loss", f'fill-opacity="{max(lost, 0):.2f}"')]
            drawn.append(text(place[0] + CELL / 2, top + CELL / 2 + 6, f"{100 * lost:.0f}", "say", "middle"))
            for found, kind in (([LETTER_HEAD, *WORD_HEADS], "gather"), (TEAM, "aggregate")):
                if ga.Head(layer, head) in found:
                    drawn.append(box(*place, f"{kind} frame", 'stroke-width="3"'))
    for head in range(n_heads):
        drawn.append(
            text(x + (head + 0.5) * CELL, y + n_layers * CELL + 17, f"H{head}", "soft say", "middle")
        )
    return drawn


def scores_panel(lm, letters, knowledge, x: float, y: float) -> list[str]:
    """A table: accuracy with all heads and without either one, beside guessing."""
    rows = [("", "letters", "knowledge", "soft")]
    for name, heads, kind in (
        ("all heads", [], ""),
        (f"no {LETTER_HEAD}", [LETTER_HEAD], "gather"),
        ("no L2H0–2", TEAM, "aggregate"),
    ):
        with ga.ablate(lm, heads):
            rows.append(
                (name, *(f"{ga.evaluate(lm, task).accuracy:.1%}" for task in (letters, knowledge)), kind)
            )
    rows.append(("guessing", "25%", "25%", "soft"))
    drawn = []
    for i, (*words, kind) in enumerate(rows):
        for left, word, anchor in zip((x, x + 140, x + 232), words, ("start", "end", "end")):
            drawn.append(text(left, y + 23 * i, word, f"{kind} say", anchor))
    return drawn


def picture() -> str:
    lm = ga.load_model("tiny-llama")
    letters, knowledge = ga.tasks.mmlu(lm, n=200, seed=0), ga.tasks.knowledge(lm, n=200, seed=0)
    question = next(q for q in letters if q.choices[q.answer].strip() == "B")
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 480" width="900" height="480" role="img">',
        f"<style>{STYLE}\n</style>\n<defs>\n{TIPS}\n</defs>",
        box(1, 1, 898, 478, "page"),
        text(
            70,
            38,
            f"Gather: an option's letter ({LETTER_HEAD}) and words move to where its line ends.",
            "gather say",
        ),
        text(
            70, 60, f"Aggregate ({AGGREGATE}): the last token reads the right option there.", "aggregate say"
        ),
        *prompt_panel(lm, question, 70, 88),
        text(640, 38, "Letters lost, in points, with one", "say"),
        text(640, 60, "head off:", "say"),
        *sweep_panel(ga.sweep_heads(lm, letters, progress=False).drop, 670, 76),
        *scores_panel(lm, letters, knowledge, 640, 366),
        "</svg>\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(picture(), encoding="utf-8")
