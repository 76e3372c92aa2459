"""The first rows of local data, for planning: no library that takes long, no download, no long read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptcli.data.model import Row

if TYPE_CHECKING:
    from ptcli.recipe.model import DataEntry


def read_head(entry: DataEntry, rows: int = 1000) -> list[Row] | None:
    return None
