"""The one batcher, for `evaluate` and for sweeps: from examples to what runs, and from logits to answers.

    examples ──rows_of──► token rows ──plan──► batches of spans ──run_batch──► logits ──read_off──► answers

A row is one text, prompt and choice, as tokens, without the last one, which is only predicted. So choices
that are single tokens, or that differ in their last token alone, share a row. Rows that begin alike share
what they begin with: it is run once, and every row continues from there (models/continuation.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from ga_utils.examples import Example
from ga_utils.models.budget import fits, is_long
from ga_utils.models.continuation import Span, how_to_continue, run
from ga_utils.models.lm import LM, UNLIMITED

EXAMPLES_AT_ONCE = 256  # to the tokenizer, which is twice as fast on many texts as on one after the other
WORTH_SHARING = 16  # tokens that must be saved before a common beginning is run on its own


@dataclass(frozen=True)
class Row:
    """One text to run, and the log-probabilities to read off it.

    index: the number of the example it belongs to. ids: its tokens, but for the last, which is only
        predicted.
    reads: (choice, positions, tokens): at each position, the log-probability of that token coming next.
    """

    index: int
    example: Example
    ids: list[int]
    reads: list[tuple[int, list[int], list[int]]]

    @property
    def texts(self) -> list[list[int]]:
        """All tokens of each choice's text that is read off here, with its last one."""
        return [[*self.ids, tokens[-1]] for _, _, tokens in self.reads]


def rows_of(lm: LM, examples: list[Example]) -> list[Row]:
    """All token rows of all examples, in order."""
    rows = []
    for first in range(0, len(examples), EXAMPLES_AT_ONCE):
        some = examples[first : first + EXAMPLES_AT_ONCE]
        pairs = [[_moved(*pair) for pair in example.texts] for example in some]
        texts = {text: None for of in pairs for before, choice in of for text in (before, before + choice)}
        tokens = dict(zip(texts, lm.tokenize(list(texts))))
        for index, (example, of) in enumerate(zip(some, pairs), first):
            rows += _token_rows(lm, index, example, [(tokens[a], tokens[a + b]) for a, b in of])
    return rows


def _moved(before: str, choice: str) -> tuple[str, str]:
    """White space at the end of a prompt is read with the choice, as in lm-evaluation-harness: most
    tokenizers make one token of a space and the word behind it."""
    end = len(before.rstrip())
    return before[:end], before[end:] + choice


def _token_rows(lm: LM, index: int, example: Example, pairs: list[tuple[list[int], list[int]]]) -> list[Row]:
    """One row for the whole example if its choices differ in the last token alone, else several.

    pairs: for each choice the tokens of what comes before it, and of the whole text.

        before   The capital of France is            whole   The capital of France is Paris .
        row      The capital of France is Paris      the last token is only predicted
        reads                           ^^ ^^^^^     at "is" for "Paris", at "Paris" for "."

    Where a token spans the end of the prompt and the beginning of the choice, the prompt's tokens are not
    those that the whole text begins with. As in lm-evaluation-harness, the prompt is then read as it stands
    alone, and of the whole text as many tokens are skipped as the prompt has.
    """
    found: list[tuple[list[int], list[int]]] = []  # tokens before a choice, and those that it adds
    for (before, choice), (prompt, whole) in zip(example.texts, pairs):
        if not prompt:
            raise ValueError(
                f"example {index} has an empty prompt, and the tokenizer begins texts with no token of "
                "its own"
            )
        added = whole[len(prompt) :]
        merged = (
            "" if whole[: len(prompt)] == prompt else ": the tokenizer merges the end of the prompt with it"
        )
        if not added:
            raise ValueError(
                f"example {index}: choice {choice!r} adds no token to the prompt ending in "
                f"{before[-20:]!r}{merged}"
            )
        if (prompt, added) in found:
            raise ValueError(f"example {index}: choice {choice!r} has the same tokens as another one{merged}")
        found.append((prompt, added))
    longest = max(len(prompt) + len(added) - 1 for prompt, added in found)
    if longest > lm.max_length:
        raise ValueError(
            f"example {index} needs {longest} tokens, but {lm.name} has a context of {lm.max_length}"
        )
    rows: dict[tuple[int, ...], Row] = {}
    for c, (prompt, added) in enumerate(found):
        ids = prompt + added[:-1]
        row = rows.setdefault(tuple(ids), Row(index, example, ids, []))
        row.reads.append((c, list(range(len(prompt) - 1, len(ids))), added))
    return list(rows.values())


def plan(
    lm: LM, rows: list[Row], limit: int | None = None, share: bool = True
) -> tuple[Span | None, list[list[Span]]]:
    """What to run in which order: a span that all texts begin with, if that is worth it, and batches of
    examples.

    A batch is a list of spans, each continuing the one before: the examples' prompts, then their choices; or
    one span of whole texts, where prompts are not shared. The prompts of a batch have the same length, so
    nothing is ever padded before a text's end: an SSM would carry padding into its state.

    Args:
        limit: so many texts at a time, instead of as many as fit the `budget`.
        share: False runs every text whole.
    """
    how = how_to_continue(lm) if share else None
    last_rows = max((edit.last_rows for edit in lm.edits), default=0)
    varied = [edit.varies_from for edit in lm.edits if edit.varies_from is not None]
    rows = sorted(rows, key=lambda row: (row.index, is_long(lm, len(row.ids))))
    examples = [list(of) for _, of in groupby(rows, key=lambda row: (row.index, is_long(lm, len(row.ids))))]
    any_long = is_long(lm, _longest(rows))
    start = _common(rows, last_rows) if how and len(examples) > 1 and not any_long else 0
    start = min([start, *(first(of[0].example) for first in varied for of in examples)])
    start = start if start >= WORTH_SHARING else 0

    def stem(of: list[Row]) -> int:
        """How many tokens of an example's texts are run once."""
        length = _common(of, last_rows) if how and len(of) > 1 else start
        if is_long(lm, _longest(of)) and not is_long(lm, length):
            return start
        return length if (len(of) - 1) * (length - start) >= WORTH_SHARING else start

    shared = span_of(lm, [Row(-1, rows[0].example, rows[0].ids, [])], 0, start) if start else None
    batches = []

    def alike(of: list[Row]) -> tuple[int, bool]:
        return stem(of), is_long(lm, _longest(of))

    for (length, _), group in groupby(sorted(examples, key=lambda of: (-stem(of), -_longest(of))), key=alike):
        for some in _batches(lm, list(group), start, length, limit):
            every, texts = [row for of in some for row in of], [of[0] for of in some]
            spans = (
                [span_of(lm, texts, start, length, [0] * len(some) if start else None)]
                if length > start
                else []
            )
            parents = [i for i, of in enumerate(some) for _ in of] if spans else [0] * len(every)
            spans.append(
                span_of(lm, every, length, None, parents if length else None, len(some) if spans else 1)
            )
            batches.append([part for span in spans for part in (steps(span) if how == "steps" else [span])])
    return shared, batches


def _common(rows: list[Row], last_rows: int) -> int:
    """How many tokens all rows begin with, before anything is read off, and before the last rows of any text,
    which an edit of the model may treat otherwise."""
    first, last = min(row.ids for row in rows), max(row.ids for row in rows)
    same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    reads = (position for row in rows for _, positions, _ in row.reads for position in positions)
    return max(0, min(same, *reads, *(len(row.ids) - last_rows for row in rows)))


def _longest(rows: list[Row]) -> int:
    return max(len(row.ids) for row in rows)


def _batches(
    lm: LM, examples: list[list[Row]], start: int, length: int, limit: int | None
) -> Iterator[list[list[Row]]]:
    """Examples that are run together: first their prompts' tokens, from `start` to `length`, then their
    choices'.
    """
    batch: list[list[Row]] = []
    n_rows = n_reads = width = 0
    for of in examples:
        reads = sum(len({position for _, where, _ in row.reads for position in where}) for row in of)
        rows, wider = n_rows + len(of), max(width, _longest(of) - length)
        prompts_fit = limit or fits(lm, len(batch) + 1, length - start, 0, start)
        rows_fit = rows <= limit if limit else fits(lm, rows, wider, n_reads + reads, length)
        if batch and not (prompts_fit and rows_fit):
            yield batch
            batch, n_rows, n_reads, width = [], 0, 0, 0
        batch.append(of)
        n_rows, n_reads, width = n_rows + len(of), n_reads + reads, max(width, _longest(of) - length)
    yield batch


def span_of(
    lm: LM, rows: list[Row], start: int, stop: int | None, parents: list[int] | None = None, n_before: int = 1
) -> Span:
    """Tokens `start` to `stop` of the rows, and what is read off there.

    Raises:
        ValueError: a token for which the model has no embedding.
    """
    parts = [row.ids[start:stop] for row in rows]
    read = (tokens for row in rows for _, _, tokens in row.reads)
    lm.check_tokens(token for some in (*(row.ids for row in rows), *read) for token in some)
    ids = torch.zeros(len(rows), max(map(len, parts)), dtype=torch.long)
    for i, part in enumerate(parts):
        ids[i, : len(part)] = torch.tensor(part)
    reads: dict[tuple[int, int], int] = {}
    picks = [
        (reads.setdefault((i, position - start), len(reads)), token, row.index, choice)
        for i, row in enumerate(rows)
        for choice, positions, tokens in row.reads
        for position, token in zip(positions, tokens)
        if start <= position < start + ids.shape[1]
    ]
    return Span(
        ids=ids.to(lm.device),
        start=start,
        parents=None if parents is None else torch.tensor(parents, device=lm.device),
        n_before=n_before,
        ends=torch.tensor(
            [len(row.ids) - start if stop is None else UNLIMITED for row in rows], device=lm.device
        ),
        reads=torch.tensor(list(reads), dtype=torch.long, device=lm.device).reshape(-1, 2).T,
        picks=torch.tensor(picks, dtype=torch.long).reshape(-1, 4).T,
        examples=[row.example for row in rows],
        indices=[row.index for row in rows],
    )


def steps(span: Span) -> list[Span]:
    """The same span one token at a time, for models that can't continue otherwise."""
    if span.start == 0:
        return [span]
    steps = []
    for t in range(span.ids.shape[1]):
        here = (span.reads[1] == t).nonzero()[:, 0]
        read, *rest = span.picks
        chosen = torch.isin(read, here.cpu())
        picks = torch.stack([torch.searchsorted(here.cpu(), read[chosen]), *(part[chosen] for part in rest)])
        reads = torch.stack([span.reads[0, here], torch.zeros_like(here)])
        parents, n_before = (span.parents, span.n_before) if t == 0 else (None, len(span.ids))
        steps.append(
            Span(
                span.ids[:, t : t + 1],
                span.start + t,
                parents,
                n_before,
                span.ends - t,
                reads,
                picks,
                span.examples,
                span.indices,
            )
        )
    return steps


def run_batch(lm: LM, batch: list[Span], cache=None, copies: int = 1) -> Iterator[tuple[Span, torch.Tensor]]:
    """Run a batch's spans one after the other: each with its logits [copy, read, vocabulary]."""
    for span in batch:
        logits, cache = run(lm, span, cache, copies, keep=span is not batch[-1])
        yield span, logits


def read_off(span: Span, logits: torch.Tensor, found: np.ndarray) -> None:
    """Add the log-probabilities of a span's answers to `found`, [copy, n_examples, n_choices], where a choice
    that nothing was added to yet is NaN, and one to which the model gave no number is infinite.

    logits: [copy, read, vocabulary].
    """
    read, token = span.picks[:2].to(logits.device)
    example, choice = span.picks[2:].numpy()
    logp = logits.float().log_softmax(-1)
    each = logp[:, read, token].double().cpu().numpy()
    for sums, values in zip(found, each):
        fresh = np.isnan(sums[example, choice])
        sums[example[fresh], choice[fresh]] = 0
        np.add.at(sums, (example, choice), values)
        broken = np.isnan(
            sums[example, choice]
        )  # the model's own NaN, which must not look like a fresh start
        sums[example[broken], choice[broken]] = np.inf
