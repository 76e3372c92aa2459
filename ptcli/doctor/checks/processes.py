"""How a process is shown to a person who may want to end it."""

from __future__ import annotations

import psutil

from ptcli.run.masking import mask

_LONGEST = 100
"""Characters of a command line that are shown."""


def command_of(pid: int) -> str:
    """`pid 12 (python -m http.server)`, without secrets; the pid alone where its command cannot be read."""
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        command = ""
    shown = mask(command)
    shown = shown if len(shown) <= _LONGEST else shown[: _LONGEST - 4] + " ..."
    return f"pid {pid} ({shown})" if shown else f"pid {pid}"
