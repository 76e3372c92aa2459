"""The tiny model, tokenizer and data sets that ship with ptcli; `--smoke`, the demo and the tests use them.

A recipe names them `builtin:tiny` (a model) and `builtin:arithmetic`, `builtin:arithmetic-messages`, ... (data). This
module only knows where they lie. `python -m ptcli.builtin.build` makes them anew, from fixed seeds.
"""

from __future__ import annotations

from pathlib import Path

PREFIX = "builtin:"
_HERE = Path(__file__).resolve().parent

MODEL = _HERE / "model"
"""Folder of the tiny model with its tokenizer."""

MODELS: tuple[str, ...] = ("tiny",)
"""Names of the models, without `builtin:`."""

DATASETS: tuple[str, ...] = (
    "arithmetic",
    "arithmetic-text",
    "arithmetic-messages",
    "arithmetic-prompt-completion",
    "arithmetic-preference",
    "arithmetic-unpaired",
    "arithmetic-steps",
)
"""Names of the data sets, without `builtin:`; one for each of TRL's dataset types."""


def model_path(name: str) -> Path:
    """Folder of a model that ships, by its name with or without `builtin:`.

    Raises KeyError, whose message names the models there are.
    """
    _require(name, MODELS, "model")
    return MODEL


def data_path(name: str) -> Path:
    """JSON Lines file of a data set that ships, by its name with or without `builtin:`.

    Raises KeyError, whose message names the data sets there are.
    """
    return _HERE / "data" / f"{_require(name, DATASETS, 'data set')}.jsonl"


def _require(name: str, known: tuple[str, ...], kind: str) -> str:
    bare = name.removeprefix(PREFIX)
    if bare not in known:
        choices = ", ".join(PREFIX + each for each in known)
        raise KeyError(f"there is no {kind} {PREFIX}{bare}; there is {choices}")
    return bare
