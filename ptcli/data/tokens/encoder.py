"""What all encoders share: how columns are read, and where a prompt ends in the tokens of prompt and completion."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ptcli.data.model import Context, Hit, Row
from ptcli.data.tokens.codec import Codec
from ptcli.data.tokens.encoded import Draft, Encoded, Ids, Unreadable

_HIGHEST_ID = 2**32 - 1
"""Of tokenizers; anything higher is out of every range as well."""
_LAST = ("completion", "chosen", "messages", "conversations")
NOT_STABLE = "template-not-prefix-stable"
MERGED = "boundary-token-merge"


class Encoder(ABC):
    """Rows of one method, as its trainer turns them into tokens: rendered first, then tokenised in batches."""

    trains: bool = True
    """False where rows are prompts, and what is trained is generated."""
    keeps_empty: bool = False
    """True when a row stays in whose trained tokens were all cut away."""
    few: int = 8
    """Trained tokens that a row must keep after a cut to be worth training on."""
    wants_end: bool = True
    """Whether a model learns where to stop from the tokens that are trained."""
    drop_rule: str = "completion-truncated-away"
    """The rule that speaks of rows which the trainer leaves out."""
    column_mask: bool = False
    """True when the columns of the first training row decide whether prompts are masked, for evaluation rows too."""

    def __init__(self, codec: Codec, context: Context, first: Row | None = None):
        """`first`: the split's first row, from which trainers conclude what all rows are; None: each row is its own."""
        self.codec = codec
        self.context = context
        self.first = first
        self.max_length: int | None = context.argument("max_length")
        self.keep = "end" if context.argument("truncation_mode") == "keep_end" else "start"

    @property
    def places(self) -> bool:
        """Whether it needs the characters of every token, which take longer to get."""
        return False

    @property
    def cuts_start(self) -> bool:
        """Whether sequences that are too long lose their beginning."""
        return self.keep == "end"

    def ends_with_answer(self, row: Row) -> bool:
        """Whether the row is a conversation that ends with the assistant's message."""
        last: Any = next((row[name] for name in _LAST if isinstance(row.get(name), list)), None)
        return is_chat(last) and last[-1].get("role") == "assistant"

    @abstractmethod
    def draft(self, row: Row) -> Draft:
        """The row rendered. Raises Unreadable and TemplateFault, and whatever a value of a wrong type leads to."""

    @abstractmethod
    def assemble(self, draft: Draft, tokens: Sequence[Any]) -> Encoded:
        """The row put together; `tokens`: those of `draft.texts`, ids or, with `places`, encodings."""

    def problems(self) -> Sequence[Hit]:
        """What is wrong with tokenizer and arguments, whatever the rows."""
        return ()

    # --- shared

    def ends_text(self, row: Row, column: str) -> bool:
        """Whether the trainer appends EOS to the text of the rows: the first row's kind decides for all."""
        return not is_chat((self.first if self.first is not None else row).get(column))

    def with_end(self, text: str) -> str:
        end = self.codec.tokenizer.eos_token
        return text if not end or text.endswith(end) else text + end

    def split(self, prompt: Ids, whole: Ids, draft: Draft, what: str) -> list[Hit]:
        """What is said of a prompt whose tokens are not those at the start of prompt and completion.

        Of text that ends in white space the structure rules say it (`boundary-whitespace`).
        """
        if whole[: len(prompt)] == prompt or (draft.plain and draft.texts[0][-1:].isspace()):
            return []
        shown = self.codec.tokenizer.decode(whole[len(prompt) :][:30])
        if draft.chats:
            return [Hit(NOT_STABLE, "error", _NOT_STABLE.format(what=what, shown=shown), _STABLE_FIX)]
        return [Hit(MERGED, "error", _MERGED.format(what=what, shown=shown), _MERGED_FIX)]


_NOT_STABLE = (
    "the chat template writes the prompt alone, with its generation prompt, differently from the start of prompt and "
    "{what}: the trainer cuts by length, and takes for the {what} {shown!r}"
)
_STABLE_FIX = "name a template in `model.chat_template` whose generation prompt is what it writes before an answer"
_MERGED = "the last characters of the prompt and the first of the {what} become one token: trained is {shown!r}"
_MERGED_FIX = "end the prompt where a word ends, and begin the completion with the space that follows"


# --- columns ---------------------------------------------------------------------------------------------------------


def is_chat(value: Any) -> bool:
    """Whether TRL takes the value for a conversation."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "role" in value[0]


def chat_of(value: Any) -> list[dict[str, Any]]:
    """The messages, each with a role. Raises Unreadable."""
    if not is_chat(value) or not all(isinstance(each, dict) and isinstance(each.get("role"), str) for each in value):
        raise Unreadable
    return value


def text_of(value: Any) -> str:
    """The value, which must be text that can be encoded. Raises Unreadable."""
    if not isinstance(value, str):
        raise Unreadable
    return value


def ids_of(value: Any) -> Ids:
    """Token ids that a row brings along. Raises Unreadable for anything else."""
    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise Unreadable
    return [min(each, _HIGHEST_ID) for each in value]


def fit_mask(mask: Sequence[bool], length: int) -> list[bool]:
    """The mask with one flag for each of `length` tokens; what is missing is not trained."""
    return [*mask[:length], *[False] * (length - len(mask))]


def same_kind(*values: Any) -> bool:
    """True when all are conversations, False when all are text. Raises Unreadable for anything else."""
    kinds = {is_chat(value) for value in values}
    if len(kinds) != 1 or (kinds == {False} and not all(isinstance(value, str) for value in values)):
        raise Unreadable
    return kinds.pop()


def tools_of(row: Mapping[str, Any]) -> Any:
    """The row's tools, parsed where they are JSON text. Raises ValueError when they are no JSON."""
    tools = row.get("tools")
    return json.loads(tools) if isinstance(tools, str) else tools


def template_arguments(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row's own arguments of the template."""
    found = row.get("chat_template_kwargs")
    return found if isinstance(found, dict) else {}


def extract_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """TRL's `extract_prompt`: what both begin with, as text or messages, and the rest of each.

    Raises Unreadable when one of the two is empty, at which TRL fails.
    """
    index = -1
    for index in range(min(len(chosen), len(rejected))):  # the last place counts when nothing differs
        if chosen[index] != rejected[index]:
            if chosen[index - 1] == " ":
                index -= 1  # the space is the answers'
            break
    if index < 0 and not (chosen and rejected):
        raise Unreadable
    return chosen[:index], chosen[index:], rejected[index:]


def common_prefix(first: str, second: str) -> str:
    """What both texts begin with."""
    if second.startswith(first):
        return first
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return first[:low]
