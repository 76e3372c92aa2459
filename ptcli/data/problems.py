"""What can be wrong with one row, as an exception."""

from __future__ import annotations


class TransformError(Exception):
    """A row that cannot be transformed as its entry says."""

    def __init__(self, message: str, key: str = ""):
        super().__init__(message, key)
        self.message = message
        """What is wrong, in one sentence without a full stop."""
        self.key = key
        """The key of the entry that asks for what cannot be done; "" when none does."""

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message
