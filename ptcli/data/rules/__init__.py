"""The structure rules: everything that can be said of raw rows and arguments, without a tokenizer.

`Checker` looks at rows one by one and keeps a `Profile`; `merge` puts the profiles of consecutive runs together;
`conclude` makes findings of a profile, by the share of rows where a rule counts from a share on.

A row is plainly good, so that a faster reader need not put it before `Checker`, when all of this holds. It then adds to
`rows`, `columns`, `first_columns`, `kinds`, `first` and `digests`, for labelled methods to `labels`, where
`traits.kl_batches` to `ends` and `counts["same completion"]`, and to nothing else.

- Columns. `plan_of(sorted names)` has a shape, which is not of token ids. There is no `margin`, `tools`,
  `chat_template_kwargs`, and no pair of columns that `pairs.scores` compares, unless the values are looked at. Other
  columns beside the plan's `values` may hold anything but NaN and infinity; where reward functions are handed them
  (`facts.rewarded`) only text, whole and finite numbers and booleans, and text is not part of the prompt.
- Texts: every value of the plan's `values` that is text, and the `content` of every message. Not blank,
  `text.plain(text)`, and the first character that is no space is neither `[` nor `{`. Answers (`completion`, `chosen`,
  `rejected`, and the last message of a chat) have a letter or a digit.
- Chats: lists, not empty, of objects with exactly `role` and `content`, the content text. Roles are an optional
  `system`, then `user` and `assistant` in turn, beginning with `user`. `messages` and pairs without `prompt` end with
  `assistant`, a prompt with `user`, and an answer beside a prompt is one `assistant` message. Text and chats are not
  mixed among the columns `prompt`, `completion`, `chosen`, `rejected`, `messages`.
- A text prompt does not end with a space or tab, either it ends with white space or each answer begins with some, and
  no answer begins with the prompt.
- Pairs: chosen and rejected differ in more than space around them. Without a `prompt` they share their first messages,
  or a beginning of text that is not blank, ends with white space, leaves both at least 5 characters and is at most
  80 % of one.
- Labels are `true` or `false`; beside prompt and completion, where the method has no labels, not `false`. Steps are as
  many as their labels, and at least one.
"""

from ptcli.data.rules.checker import Checker
from ptcli.data.rules.conclude import conclude
from ptcli.data.rules.duplicates import overlap
from ptcli.data.rules.profiles import merge
from ptcli.data.rules.table import RULES, Rule

__all__ = ["RULES", "Checker", "Rule", "conclude", "merge", "overlap"]
