"""Texts as tokens: which special tokens belong around them, and conversations as text."""

from __future__ import annotations

from contextlib import suppress

from transformers import PreTrainedTokenizerBase


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The tokens of each text, as the beginning of something: after the tokenizer's BOS, if it has one, and
    without the EOS that some tokenizers put behind every text.

    A text that begins with BOS gets no second, and one that the chat template begins gets no other special
    tokens than the template's.
    """
    if not texts:
        return []
    beginnings = _beginnings(tokenizer)
    begun = {text for text in texts if text.startswith(beginnings)}
    plain = [text for text in texts if text not in begun]
    found = dict(zip(plain, tokenizer(plain).input_ids)) if plain else {}
    if begun:
        found |= dict(zip(begun, tokenizer(list(begun), add_special_tokens=False).input_ids))
    some = min(filter(str.strip, texts), key=len, default="a")  # the vocabulary may have no other letters
    special, ids = tokenizer([some]).input_ids[0], tokenizer([some], add_special_tokens=False).input_ids[0]
    behind = next(
        (len(special) - i - len(ids) for i in range(len(special)) if special[i : i + len(ids)] == ids), 0
    )
    return [found[text] if text in begun else found[text][: -behind or None] for text in texts]


def offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Where in the text each token that `tokenize` gives begins and ends.

    Raises:
        ValueError: a slow tokenizer, which does not say where its tokens stand.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which does not say where its tokens stand in "
            "the text, so segments can't be found: load the model's fast tokenizer"
        )
    begun = text.startswith(_beginnings(tokenizer))
    found = tokenizer(text, add_special_tokens=not begun, return_offsets_mapping=True).offset_mapping
    return found[: len(tokenize(tokenizer, [text])[0])]


def conversation(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """Messages as the chat template writes them, up to where the assistant's answer begins, or to the end of
    the assistant's message if that is the last one.

    Raises:
        ValueError: no messages, no chat template, or a tokenizer that reads the text otherwise than the
            template says.
    """
    if not tokenizer.chat_template or not messages:
        what = "this tokenizer has no chat template" if messages else "a conversation needs a message"
        raise ValueError(f"{what}: write the prompt as plain text, or give `wrap` another tokenizer")
    answers = messages[-1]["role"] == "assistant"
    how = {"add_generation_prompt": not answers, "continue_final_message": answers}
    text = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    if tokenize(tokenizer, [text])[0] != tokenizer.apply_chat_template(messages, return_dict=False, **how):
        raise ValueError(
            "the tokenizer puts other special tokens around this conversation than its chat template does: "
            "give `wrap` a tokenizer that adds none (add_bos_token=False)"
        )
    return text


def _beginnings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """How texts begin that hold all their special tokens: with BOS, or with what the chat template writes
    before the first message.
    """
    found = [tokenizer.bos_token]
    for role in ("user", "system") if tokenizer.chat_template else ():
        with suppress(Exception):  # a template may refuse a role, with an exception of any kind
            text = tokenizer.apply_chat_template([{"role": role, "content": "?!"}], tokenize=False)
            found.append(text.partition("?!")[0])
    return tuple(text for text in found if text)
