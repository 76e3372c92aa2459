"""Whether the model hub can be asked: its own client tries for half a minute before it says that it cannot."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

_SECONDS = 5.0
_YES = frozenset({"1", "ON", "YES", "TRUE"})


def why_unreachable() -> str:
    """Why the hub cannot be asked; "" when it can, or when only its client would tell (through a proxy)."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        return "HF_HUB_OFFLINE is set"
    if getproxies():
        return ""
    return _try(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")


@cache
def _try(endpoint: str) -> str:
    address = urlsplit(endpoint)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), _SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return f"the hub at {endpoint} cannot be reached ({error})"
