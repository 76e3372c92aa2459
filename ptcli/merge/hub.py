"""Models and adapters of the hub that are not in the local cache yet."""

from __future__ import annotations

from pathlib import Path

from ptcli.errors import Problem, RequestError

_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md", "adapter_model.bin")
"""Files that a merge reads. A base's pickles are not among them, where it has both."""


def download(path: str, revision: str | None, what: str, fix: str) -> Path:
    """The folder of a hub repository, fetched into the cache. `what` it is and what to do instead, for the message.

    Raises RequestError when it cannot be had: no network, no such repository, no access.
    """
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(path, revision=revision, allow_patterns=list(_PATTERNS)))
        if not any(found.glob("*.safetensors")) and not (found / "adapter_model.bin").exists():
            snapshot_download(path, revision=revision, allow_patterns=["*.bin"])
        return found
    except Exception as error:  # whatever the hub's client raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")
        message = f"{what} {path} is not on this machine and cannot be downloaded: {reason}"
        raise RequestError(Problem(message, fix)) from None
