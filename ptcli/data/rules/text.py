"""What stands in texts: template tokens, broken characters, nothing to learn, a prompt that ends in the wrong place."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

from ptcli.data.model import Hit
from ptcli.data.rules.facts import Seen
from ptcli.data.rules.words import LEAVE_OUT, clip

_ENDS = ("<|im_end|>", "</s>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "<|end|>")
"""End-of-sequence tokens of the usual models."""
_BROKEN = "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\ufffd]|\u00c3[\u0080-\u00bf]|\u00e2\u20ac"
_TOKENS = (
    r"<\|(?:im_start|im_end|im_sep|endoftext|eot_id|eom_id|start_header_id|end_header_id|begin_of_text|end_of_text|"
    r"system|user|assistant|end|begin▁of▁sentence|end▁of▁sentence)\|>|</?s>|\[/?INST\]|<</?SYS>>|"
    r"<(?:start|end)_of_turn>|<(?:bos|eos)>"
)
SUSPECT = re.compile(f"{_BROKEN}|{_TOKENS}")
"""Whatever the rules of this module may object to inside a text."""
_CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f]")
_BROKEN_TEXT = re.compile(_BROKEN)
_TEMPLATE_TOKEN = re.compile(_TOKENS)
_WORD = re.compile(r"[^\W_]")
_PUNCTUATION = frozenset(string.punctuation)
_FIRST_UNSPACED = "\u2e80"
_ANSWERS = ("completion", "chosen", "rejected")


def suspects(seen: Seen) -> Iterator[Hit]:
    """Template tokens and broken characters."""
    for column, text in seen.texts:
        if plain(text):
            continue
        broken = _BROKEN_TEXT.search(text)
        if broken is not None:
            detail = f"`{column}` has {_named(broken.group())} in it"
            yield Hit("encoding", "warning", detail, "decode the texts once more from their source, as UTF-8", column)
        token = _TEMPLATE_TOKEN.search(text if column in seen.chats else _without_end(text))
        if token is not None:
            detail = f"`{column}` has the template token {token.group()} in it"
            fix = "write chats as messages and leave the template to the tokenizer"
            yield Hit("special-token-in-text", "warning", detail, fix, column)


def plain(text: str) -> bool:
    """Whether a text holds neither template tokens nor broken characters."""
    if text.isascii() and "<" not in text and "[" not in text:
        return _CONTROL.search(text) is None
    return SUSPECT.search(text) is None


def _named(found: str) -> str:
    if found == "\ufffd":
        return "U+FFFD, the sign of characters that could not be decoded,"
    return f"the control character U+{ord(found):04X}" if len(found) == 1 else f"{found!r} (UTF-8 read as Latin-1)"


def _without_end(text: str) -> str:
    """The text without one end-of-sequence token at its end, which TRL then does not append once more."""
    text = text.rstrip()
    return next((text.removesuffix(end) for end in _ENDS if text.endswith(end)), text)


def ends_with_token(text: str) -> bool:
    return text.rstrip().endswith(_ENDS)


def has_word(text: str) -> bool:
    """Whether a text has a letter or a digit."""
    return _WORD.search(text) is not None


def low_information(seen: Seen) -> Iterator[Hit]:
    """Answers of nothing but signs."""
    for column, text in _answers(seen):
        if not has_word(text) and text.strip():
            detail = f"`{column}` has no letter and no digit: {clip(text.strip(), 20)!r}"
            yield Hit("low-information", "warning", detail, LEAVE_OUT, column)


def _answers(seen: Seen) -> Iterator[tuple[str, str]]:
    for column, text in seen.texts:
        if column in _ANSWERS and column not in seen.chats:
            yield column, text
    for column, chat in seen.chats.items():
        last = chat[-1].get("content")
        if column != "prompt" and isinstance(last, str) and chat[-1].get("role") == "assistant":
            yield column, last


def boundary(seen: Seen) -> Iterator[Hit]:
    """Where a prompt and an answer of text meet: tokens do not span a space that stands with the answer."""
    prompt = seen.row["prompt"] if seen.plan.explicit and seen.split is None else None
    if not isinstance(prompt, str) or not prompt.strip():
        return
    if prompt[-1] in " \t":
        detail = "`prompt` ends with a space, which most tokenizers join with the answer's first word"
        yield Hit("boundary-whitespace", "warning", detail, "move the space to the beginning of the answer")
        return
    for _, text in seen.text_answers():
        if glued(prompt, text):
            joint = clip(prompt[-12:] + text[:8])
            detail = f"prompt and answer meet without a space ({joint!r})"
            yield Hit("boundary-whitespace", "warning", detail, "begin the answer with a space", "glued")
            return


def glued(prompt: str, answer: str) -> bool:
    """Whether a prompt and an answer meet without a space where their script puts one."""
    return answer != "" and _spaced(answer[0]) and (prompt[-1] in _PUNCTUATION or _spaced(prompt[-1]))


def _spaced(letter: str) -> bool:
    """Whether a letter or digit is of a script that puts spaces between words."""
    return letter.isalnum() and letter < _FIRST_UNSPACED


def text_field(seen: Seen) -> Iterator[Hit]:
    """Text under a name for which TRL appends no end-of-sequence token."""
    column = seen.facts.text_field
    value = seen.row[column]
    if column != "text" and isinstance(value, str) and not ends_with_token(value):
        detail = f"`{column}` does not end with an end-of-sequence token, and TRL appends one to `text` only"
        yield Hit("text-field-no-eos", "warning", detail, f"rename: {{{column}: text}}")
