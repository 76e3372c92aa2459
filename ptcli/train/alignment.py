"""The entries of a mixture with one set of columns and types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset, Features

from ptcli.errors import WorkError
from ptcli.train import cache
from ptcli.train.exact import merge_features, read_rows, write_rows

_DECIDING = frozenset(
    {
        "text",
        "messages",
        "conversations",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "label",
        "completions",
        "labels",
    }
    | {"input_ids", "chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids", "margin"}
)
"""Columns by which a trainer tells what a row is: every row has them, or none."""
_OPTIONAL = frozenset({"tools", "chat_template_kwargs", "image", "images"})
"""Columns that a trainer reads where a row has them."""


def align(parts: Sequence[Dataset], key: str, *, keep_all: bool) -> list[Dataset]:
    """The parts with the same columns, in the same order, of the same types.

    `keep_all`: keep also the columns that only some parts have, which are null in the others, as rewards may read them.
    Raises WorkError that names the part which does not fit.
    """
    if len(parts) == 1:
        return list(parts)
    for index, rows in enumerate(parts[1:], 1):
        _check_columns(parts[0].column_names, rows.column_names, f"{key}.{index}")
    features = _common(parts, key, keep_all=keep_all)
    return [_cast(rows, features) for rows in parts]


def _check_columns(first: Sequence[str], columns: Sequence[str], key: str) -> None:
    if (set(first) ^ set(columns)) & _DECIDING:
        raise WorkError(
            f"{key}: its columns ({', '.join(columns)}) are not those of the first entry ({', '.join(first)}); "
            "make them alike with `from`, `rename`, `prompt` or `columns`"
        )


def _common(parts: Sequence[Dataset], key: str, *, keep_all: bool) -> Features:
    """The columns that all parts have, with types that hold the values of all of them."""
    features = dict(parts[0].features)
    for index, rows in enumerate(parts[1:], 1):
        for name, feature in rows.features.items():
            try:
                features[name] = merge_features(features[name], feature) if name in features else feature
            except TypeError:
                raise WorkError(
                    f"{key}.{index}: its column types are not those of the first entry: `{name}` is "
                    f"{_shown(feature)}, and in the entries before it {_shown(features[name])}"
                ) from None
    everywhere = frozenset(features).intersection(*(rows.column_names for rows in parts))
    return Features({n: f for n, f in features.items() if keep_all or n in everywhere or n in _OPTIONAL})


def _shown(feature: Any) -> str:
    """A type in few words."""
    kind = type(feature).__name__
    return {"List": "a list", "dict": "an object", "Value": getattr(feature, "dtype", kind)}.get(kind, kind)


def _cast(rows: Dataset, features: Features) -> Dataset:
    """The rows with these features, written anew where they differ: a cast would fill objects with nulls."""
    if rows.features == features:
        return rows if rows.column_names == list(features) else rows.select_columns(list(features))
    kept = rows.select_columns([name for name in features if name in rows.column_names])
    key = cache.key_of({"rows": rows._fingerprint, "features": str(features)})
    folder = cache.make("rows", key, lambda folder: write_rows(kept, features, folder))
    return read_rows(folder, key)
