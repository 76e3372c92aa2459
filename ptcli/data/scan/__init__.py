"""The strings of a block of JSON Lines, found by their quotes, and the columns that they make up.

A JSON parser builds every value. Here NumPy finds the quotes and backslashes of a whole block, and the few bytes
between one string and the next say whether a row is written as the first one of its block is: the same columns in the
same order, with the same space between them. Rows that are not (`Columns.regular` is False) are for others to read.
That such a row is JSON is known by then: everything between strings is compared, and so are escapes.
"""

from ptcli.data.scan.columns import (
    ASSISTANT,
    SYSTEM,
    USER,
    Columns,
    Messages,
    Numbers,
    read,
)
from ptcli.data.scan.lines import BEYOND, Lines, lines_of, places
from ptcli.data.scan.strings import Pieces

__all__ = [
    "ASSISTANT",
    "BEYOND",
    "SYSTEM",
    "USER",
    "Columns",
    "Lines",
    "Messages",
    "Numbers",
    "Pieces",
    "lines_of",
    "places",
    "read",
]
