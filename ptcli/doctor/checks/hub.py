"""The Hugging Face hub: can it be reached, and what the recipe wants of it, had. Tokens are never shown."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from ptcli.doctor.background import in_background
from ptcli.doctor.findings import Finding
from ptcli.doctor.needs import Needs, Repository
from ptcli.recipe.local_models import cached_snapshot, hub_cache

SECONDS = 4.0
"""Longest that an answer may take."""
_TRUE = ("1", "on", "yes", "true")
Answer = Literal["cached", "there", "forbidden", "unknown", "no answer"]
"""`unknown`: the hub says that it has no such thing, or that this token may not know."""


@dataclass(frozen=True)
class Hub:
    """What the hub says."""

    endpoint: str
    offline: bool = False
    """HF_HUB_OFFLINE is set: nothing is asked."""
    error: str = ""
    """Why it cannot be reached."""
    token: str = ""
    """Where the token comes from; empty without one."""
    answers: tuple[tuple[Repository, Answer], ...] = ()


def read_hub(needs: Needs) -> Hub:
    """Ask the hub for itself and for what the recipe names, all at once."""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token, source = _token()
    cached = {each: _is_cached(each) for each in needs.downloads}
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE:
        answers = tuple((each, _known(known)) for each, known in cached.items())
        return Hub(endpoint, offline=True, token=source, answers=answers)
    itself = in_background(_ask, f"{endpoint}/api/models?limit=1", token)
    asked = {each: in_background(_ask, _address(endpoint, each), token) for each in cached if not cached[each]}
    deadline = time.monotonic() + SECONDS + 1
    error = _unreachable(_wait(itself, deadline))
    answers = tuple((each, _answer(_wait(asked[each], deadline)) if each in asked else "cached") for each in cached)
    return Hub(endpoint, error=error, token=source, answers=answers)


def judge_hub(hub: Hub, needs: Needs) -> list[Finding]:
    """A hub that is away is a failure only for a recipe that wants what is not cached."""
    absent = [each for each, answer in hub.answers if answer == "no answer"]
    missing = [*_absent(hub, absent), *_refused(hub)]
    return missing or [_reached(hub, needs)]


def _reached(hub: Hub, needs: Needs) -> Finding:
    signed = f"token from {hub.token}" if hub.token else "no token, which gated models want"
    cached = "; what the recipe wants is cached or local" if needs.recipe is not None else ""
    if hub.offline:
        return Finding("hub", "pass", f"HF_HUB_OFFLINE is set: only what is cached is used{cached}")
    if not hub.error:
        return Finding("hub", "pass", f"{hub.endpoint} answers ({signed})")
    if needs.recipe is not None:
        return Finding("hub", "pass", f"{hub.endpoint} does not answer ({hub.error}){cached}")
    fix = "set HTTPS_PROXY, or HF_ENDPOINT to a mirror; export HF_HUB_OFFLINE=1 to use the cache without asking"
    return Finding("hub", "warn", f"{hub.endpoint} does not answer: {hub.error}", fix)


def _absent(hub: Hub, absent: list[Repository]) -> Iterator[Finding]:
    """What is not in the cache and cannot be had now."""
    if not absent:
        return
    why = "HF_HUB_OFFLINE is set" if hub.offline else f"{hub.endpoint} does not answer ({hub.error or 'in time'})"
    names = ", ".join(dict.fromkeys(f"{each.id} ({'.'.join(map(str, each.key))})" for each in absent))
    downloads = "; ".join(dict.fromkeys(map(_download, absent)))
    how = "unset HF_HUB_OFFLINE" if hub.offline else "set HTTPS_PROXY or HF_ENDPOINT"
    fix = f"{how}; or where the hub answers: {downloads}, and copy {hub_cache()} here"
    yield Finding("hub", "fail", f"{why}, and not in the cache: {names}", fix)


def _refused(hub: Hub) -> Iterator[Finding]:
    for each, answer in hub.answers:
        place = ".".join(map(str, each.key))
        page = f"{hub.endpoint}/{'datasets/' if each.kind == 'datasets' else ''}{each.id}"
        if answer == "forbidden":
            fix = f"accept its terms at {page}" + ("" if hub.token else ", then hf auth login, or export HF_TOKEN")
            yield Finding("hub", "fail", f"{place}: {each.id} is gated, and not open to {_whom(hub)}", fix)
        elif answer == "unknown":
            fix = f"correct it: {page}" + ("" if hub.token else "; if it is private: hf auth login, or export HF_TOKEN")
            at = f" at revision {each.revision}" if each.revision else ""
            yield Finding("hub", "fail", f"{place}: the hub shows no {each.id}{at} to {_whom(hub)}", fix)


def _whom(hub: Hub) -> str:
    return f"the token from {hub.token}" if hub.token else "anonymous users"


def _download(each: Repository) -> str:
    kind = " --repo-type dataset" if each.kind == "datasets" else ""
    revision = f" --revision {each.revision}" if each.revision else ""
    return f"hf download {each.id}{kind}{revision}"


# --- reading ---------------------------------------------------------------------------------------------------------


def _address(endpoint: str, each: Repository) -> str:
    """A file that is open where the repository is: its page is there for gated ones, too."""
    place, name = ("datasets/", "README.md") if each.kind == "datasets" else ("", "config.json")
    return f"{endpoint}/{place}{each.id}/resolve/{quote(each.revision or 'main', safe='')}/{name}"


def _ask(address: str, token: str) -> int | str:
    """The status of a HEAD request, or why there is none. Redirects are answers."""
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "ptcli-doctor"})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=SECONDS) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        # A repository that is there may lack the file (an adapter has no config.json): the hub says which.
        if error.headers.get("X-Error-Code") == "EntryNotFound":
            return 200
        return 403 if error.headers.get("X-Error-Code") == "GatedRepo" else error.code
    except OSError as error:
        reason = getattr(error, "reason", error)
        return getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    except ValueError as error:
        return str(error)


def _wait(asked: Future[int | str], deadline: float) -> int | str:
    """The limit of a request does not count the time that a name server takes."""
    try:
        return asked.result(max(deadline - time.monotonic(), 0))
    except TimeoutError:
        return f"no answer within {SECONDS:.0f} s"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Answer with the redirect itself: a large file's leads to another server."""


def _answer(status: int | str) -> Answer:
    if isinstance(status, str) or status >= 500 or status == 429:
        return "no answer"
    if status < 400:
        return "there"
    return "forbidden" if status == 403 else "unknown"


def _unreachable(status: int | str) -> str:
    if isinstance(status, str):
        return status
    return f"HTTP {status}" if status >= 500 or status in (407, 403) else ""


def _known(cached: bool) -> Answer:
    return "cached" if cached else "no answer"


def _is_cached(each: Repository) -> bool:
    if each.kind == "models":
        return cached_snapshot(each.id, each.revision) is not None
    return any((hub_cache() / f"datasets--{each.id.replace('/', '--')}" / "snapshots").glob("*"))


def _token() -> tuple[str, str]:
    """The token, and where it comes from: as huggingface_hub looks for it."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if value := os.environ.get(name, "").strip():
            return value, name
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"))
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return "", ""
    return value, str(path) if value else ""
