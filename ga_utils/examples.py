"""`Example`: one question, its possible answers, and which of them is right."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One question: a model reads `prompt`, and should find `choices[answer]` the likeliest continuation.

    prompt: text; `lm.chat(messages)` makes it of a conversation.
    choices: texts that may follow the prompt, each with the space in front that belongs there.
    task: names the kind of question.
    given: for each choice a text that is read between prompt and choice and not scored. Only Winogrande has
        it: either option is read, and the rest of the sentence, the same after both, is scored.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int
    task: str
    given: tuple[str, ...] = ()

    def __post_init__(self):
        if not isinstance(self.prompt, str):
            raise ValueError(
                f"prompt={self.prompt!r:.60}: expected text; write a conversation as text with "
                "lm.chat(messages)"
            )
        if len(self.choices) < 2:
            raise ValueError(f"an Example needs at least two choices, got {self.choices!r}")
        if self.given and len(self.given) != len(self.choices):
            raise ValueError(
                f"given has {len(self.given)} texts for {len(self.choices)} choices: one for each, or none"
            )
        if len(set(self.texts)) != len(self.choices):
            raise ValueError(f"duplicate choices in {self.choices!r}: every choice must be a different text")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer={self.answer} is not an index into the {len(self.choices)} choices")

    @property
    def texts(self) -> list[tuple[str, str]]:
        """For each choice: all text that is read before it, and the choice itself, which is scored."""
        given = self.given or ("",) * len(self.choices)
        return [(self.prompt + before, choice) for before, choice in zip(given, self.choices)]
