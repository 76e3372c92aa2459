"""Every rule by its id: how severe, which methods it serves, and what it says. The functions stand elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ptcli.data.model import Severity
from ptcli.methods import METHODS, Batching, DatasetType, Method

Serves = Callable[[Method], bool]


@dataclass(frozen=True)
class Rule:
    """One rule of the data checks."""

    id: str
    severity: Severity
    """The worst that it says."""
    methods: tuple[str, ...]
    summary: str


def everyone(method: Method) -> bool:
    return True


def pairs(method: Method) -> bool:
    """Takes preference pairs, if only to take them apart."""
    return DatasetType.PREFERENCE in method.datasets


def pairs_only(method: Method) -> bool:
    """Takes preference pairs and nothing else."""
    return method.datasets == (DatasetType.PREFERENCE,)


def labelled(method: Method) -> bool:
    return DatasetType.UNPAIRED_PREFERENCE in method.datasets


def prompts(method: Method) -> bool:
    """Takes prompts, and makes the answers itself."""
    return DatasetType.PROMPT_ONLY in method.datasets


def answers(method: Method) -> bool:
    """Trains on answers that the rows hold."""
    return not prompts(method)


def completions(method: Method) -> bool:
    """Takes a prompt and one completion, labelled or not."""
    return labelled(method) or DatasetType.PROMPT_COMPLETION in method.datasets


def language(method: Method) -> bool:
    return DatasetType.LANGUAGE_MODELING in method.datasets


def fine_tuning(method: Method) -> bool:
    """Takes prompt and completion, or text."""
    return DatasetType.PROMPT_COMPLETION in method.datasets


def steps(method: Method) -> bool:
    return DatasetType.STEPWISE_SUPERVISION in method.datasets


def chats(method: Method) -> bool:
    return method.data.chats


def rewarded(method: Method) -> bool:
    """Passes the columns of a row to reward functions."""
    return bool(method.reward_arguments)


def token_ids(method: Method) -> bool:
    return bool(method.data.token_columns)


def cut(method: Method) -> bool:
    """Cuts the prompt off pairs that come without one."""
    return pairs(method) and method.data.implicit_prompt != "kept"


def _either(*predicates: Serves) -> Serves:
    return lambda method: any(predicate(method) for predicate in predicates)


def _wants_prompt(method: Method) -> bool:
    return method.data.empty_prompt != "ok"


def _no_tools(method: Method) -> bool:
    """Has chats in which `tools` of the row do not reach the template."""
    return method.data.chats and not method.data.tools and method.prompts == "text"


def _unshuffled(method: Method) -> bool:
    return labelled(method) and not method.data.shuffles


def _truncates(method: Method) -> bool:
    return answers(method) and not method.data.checks_last_role


def _row_by_row(method: Method) -> bool:
    return pairs_only(method) and method.data.implicit_prompt == "row by row"


_TABLE: tuple[tuple[str, Severity, Serves, str], ...] = (
    # files
    ("unreadable-file", "error", everyone, "a line or a file cannot be read as JSON objects"),
    ("json-array-file", "warning", everyone, "a file is one JSON array instead of one object a line"),
    ("transform-failed", "error", everyone, "a transform of the data entry fails on a row"),
    ("empty-split", "error", everyone, "a split has no rows"),
    ("eval-missing", "error", everyone, "the trainer shall evaluate, but there are no evaluation rows"),
    ("too-few-rows", "error", everyone, "fewer rows than a batch takes"),
    ("rl-tail-dropped", "warning", lambda m: m.batching is Batching.GENERATION,
     "the last prompts do not fill a generation batch and are never seen"),
    # columns
    ("missing-columns", "error", everyone, "no set of columns that the method accepts is there"),
    ("misspelt-column", "error", everyone, "a column's name looks like one that is missing"),
    ("wrong-type-family", "error", everyone, "the columns are those of another method's data"),
    ("unused-completion", "warning", prompts, "completions are there that the method never trains on"),
    ("ambiguous-columns", "error", language, "more than one accepted set of columns is there, and TRL picks one"),
    ("mixed-format", "error", everyone, "rows, or columns of one row, differ between text and chats, or in columns"),
    ("prompt-format-mismatch", "error", pairs, "`prompt` is text and the answers are chats, or the reverse"),
    ("ignored-column", "warning", lambda m: answers(m) and not m.online and chats(m),
     "a column such as `system` is never rendered"),
    ("vision-columns", "error", lambda m: m.prompts == "text", "images, but a model that takes text only"),
    ("ppo-needs-input-ids", "warning", lambda m: m.prompts == "tokens",
     "never reported: the trainer wants `input_ids`, and ptcli makes them from `prompt`"),
    ("ppo-extra-columns", "warning", lambda m: m.prompts == "tokens", "columns that are dropped"),
    ("odpo-null-column", "warning", lambda m: rewarded(m) and m.batching is Batching.PAIRS,
     "a column that reward functions are handed has nulls"),
    # values
    ("wrong-value-type", "error", everyone, "a value is not of the JSON type that the method reads"),
    ("json-string-column", "error", everyone, "a column holds chats as JSON text"),
    ("null-value", "error", everyone, "a required value is null or absent"),
    ("empty-value", "error", answers, "an answer is empty: only the end-of-sequence token is trained"),
    ("empty-prompt", "error", _wants_prompt, "a prompt is empty"),
    ("nan-value", "error", everyone, "a number is NaN or infinite"),
    ("lossy-arrow-schema", "error", everyone, "a value is text in some rows and a number in others"),
    # chats
    ("empty-messages", "error", everyone, "a list of messages or steps is empty"),
    ("null-content", "error", chats, "a message has no `content` and no tool calls"),
    ("unknown-role", "error", chats, "a role is none of system, user, assistant, tool"),
    ("sharegpt-in-messages", "error", chats, "messages hold from/value instead of role/content"),
    ("misnamed-conversations", "error", language, "`conversations` holds role/content"),
    ("content-parts", "error", chats, "a message's content is a list of parts"),
    ("no-assistant-turn", "error", language, "a row has no assistant turn to train on"),
    ("last-turn-not-assistant", "error", language, "the last turn is not the assistant's"),
    ("completion-not-assistant", "error", _either(pairs, completions), "an answer does not begin with the assistant"),
    ("prompt-ends-assistant", "warning", lambda m: chats(m) and (m.data.text or not language(m)),
     "a prompt ends with an assistant turn"),
    ("role-order", "error", chats, "roles stand in an order that templates refuse or misread"),
    ("no-user-turn", "error", lambda m: pairs(m) or prompts(m), "a prompt has no user turn"),
    ("bad-tools", "error", lambda m: m.data.tools, "`tools` is not a list of functions with names"),
    ("tools-ignored", "warning", _no_tools, "the method does not render a row's `tools` or `chat_template_kwargs`"),
    ("tool-arguments-string", "warning", chats,
     "a tool call's arguments are JSON text, which some templates encode twice"),
    ("ignored-message-keys", "warning", chats, "messages have keys that nothing reads, such as `weight`"),
    # pairs
    ("prompt-duplicated", "error", _either(pairs, completions), "the prompt is repeated inside the answer"),
    ("chosen-equals-rejected", "error", pairs, "chosen and rejected are the same"),
    ("chosen-prefix-of-rejected", "error", cut, "one answer begins with the whole other one, and no prompt is given"),
    ("implicit-prompt-empty", "error", cut, "no prompt is given, and the answers share no beginning"),
    ("implicit-prompt-in-answer", "warning", cut, "the shared beginning reaches into the answers"),
    ("implicit-no-shared-prefix", "warning", lambda m: pairs(m) and m.data.implicit_prompt == "kept",
     "no prompt is given, and the answers share none"),
    ("score-contradicts-label", "warning", pairs, "the rejected answer has the higher score"),
    # labels
    ("label-not-bool", "error", _either(labelled, steps), "a label is not true or false"),
    ("single-label-class", "error", _either(labelled, steps), "all labels are the same"),
    ("label-imbalance", "warning", labelled, "one label is more than four times as frequent as the other"),
    ("contradicting-labels", "warning", labelled, "the same completion has both labels"),
    ("kto-sorted-labels", "warning", _unshuffled, "rows are not shuffled, and most batches have one label only"),
    ("kto-kl-batch", "warning", lambda m: m.data.kl_batches, "a batch of one row has no neighbour for the KL estimate"),
    ("kto-kl-same-completion", "warning", lambda m: m.data.kl_batches, "neighbouring rows have the same completion"),
    ("prm-conversational", "error", lambda m: not chats(m), "a chat, but the method applies no template"),
    ("margin-negative", "warning", lambda m: m.data.margin, "a margin is negative"),
    # token ids in rows
    ("length-mismatch", "error", _either(steps, token_ids), "labels and what they label differ in length"),
    ("all-labels-masked", "error", _either(token_ids, answers), "no token of a row is trained"),
    ("mask-ignored", "error", fine_tuning, "`completion_mask` without `completion_only_loss: true` is ignored"),
    ("padded-input-ids", "warning", fine_tuning, "padding inside `input_ids` is trained"),
    ("token-id-range", "error", token_ids, "a token id that the model does not have"),
    # arguments
    ("completion-only-needs-pc", "error", fine_tuning, "`completion_only_loss` without prompt and completion"),
    ("text-field-no-eos", "warning", lambda m: m.data.text_field,
     "TRL appends no end-of-sequence token to a column of another name than `text`"),
    ("assistant-only-loss", "error", fine_tuning, "`assistant_only_loss` where no assistant turns can be told"),
    # rewards
    ("reward-column-missing", "error", rewarded, "a reward function needs a column that is not there"),
    ("reward-column-null", "error", rewarded, "a column that a reward function reads has nulls"),
    ("reserved-column", "error", rewarded, "a column has the name of something the trainer passes to reward functions"),
    ("answer-leak", "warning", rewarded, "the answer stands in the prompt"),
    # text
    ("boundary-whitespace", "warning", _either(pairs, completions), "prompt and answer meet in the wrong place"),
    ("special-token-in-text", "warning", everyone, "text holds template tokens"),
    ("duplicate-rows", "warning", everyone, "rows occur more than once, or in training and evaluation"),
    ("encoding", "warning", everyone, "text has control characters or was decoded wrongly"),
    ("low-information", "warning", _either(pairs_only, fine_tuning), "an answer has no letter and no digit"),
    # tokens
    ("missing-chat-template", "error", chats, "chats, but the tokenizer has no chat template"),
    ("template-raises", "error", chats, "the chat template refuses a row"),
    ("template-drops-content", "error", chats, "text of a message is not in what the template renders"),
    ("template-drops-tools", "error", chats, "tools or tool calls are not in what the template renders"),
    ("template-not-prefix-stable", "error", chats, "the rendered prompt is not the beginning of the rendered row"),
    ("boundary-token-merge", "error", _either(pairs, completions), "a token spans prompt and answer"),
    ("truncation", "warning", answers, "rows are longer than `max_length`"),
    ("completion-truncated-away", "error", _truncates, "truncation leaves no, or hardly any, trained token"),
    ("truncated-identical", "error", pairs, "chosen and rejected are the same after truncation"),
    ("cpo-truncation", "error", _row_by_row, "`max_length` cuts answers by the wrong amount"),
    ("bco-truncation", "error", lambda m: m.data.strict_labels, "the prompt leaves no room for the answer"),
    ("reward-filtered", "error", lambda m: m.data.margin, "pairs longer than `max_length` are dropped"),
    ("rl-prompt-not-truncated", "warning", prompts, "prompt and completion do not fit into the model"),
    ("zero-trained", "error", answers, "no token of a row is trained"),
    ("no-eos", "warning", answers, "rows do not end with the end-of-sequence token"),
    ("double-bos", "warning", everyone, "rows begin with two BOS tokens"),
    ("pad-is-eos", "warning", everyone, "there is no pad token, or it is the end-of-sequence token"),
    ("vocab-vs-embeddings", "error", everyone, "the tokenizer has more tokens than the model"),
    ("assistant-mask-empty", "error", fine_tuning, "`assistant_only_loss` and a row without assistant tokens"),
    ("unk-rate", "warning", everyone, "text holds characters that the tokenizer does not know"),
    ("eval-mask-mismatch", "warning", fine_tuning, "training and evaluation rows are masked differently"),
)  # fmt: skip

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        id: Rule(id, severity, tuple(name for name, method in METHODS.items() if serves(method)), summary)
        for id, severity, serves, summary in _TABLE
    }
)
"""Every rule by its id."""
