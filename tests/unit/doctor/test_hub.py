"""The hub, as a server of this test plays it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ptcli.doctor.checks import hub
from ptcli.doctor.checks.hub import Hub, judge_hub, read_hub
from ptcli.doctor.needs import Needs, Repository

OPEN = Repository("models", "org/open", None, ("model", "path"))
GATED = Repository("models", "org/gated", None, ("model", "path"))
ABSENT = Repository("models", "org/absent", "v2", ("model", "path"))
ADAPTER = Repository("models", "org/adapter", None, ("model", "path"))
DATA = Repository("datasets", "org/rows", None, ("data", "train", 0, "path"))
ANSWERS = {
    "/api/models?limit=1": (200, ""),
    "/org/open/resolve/main/config.json": (307, ""),
    "/org/gated/resolve/main/config.json": (401, "GatedRepo"),
    "/org/absent/resolve/v2/config.json": (404, "RevisionNotFound"),
    "/org/adapter/resolve/main/config.json": (404, "EntryNotFound"),
    "/datasets/org/rows/resolve/main/README.md": (200, ""),
}


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        status, code = ANSWERS.get(self.path, (401, "RepoNotFound"))
        self.server.tokens.add(self.headers.get("Authorization"))  # type: ignore[attr-defined]
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 307:
            self.send_header("Location", "/nowhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and none of the caller's settings."""
    for name in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_OFFLINE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
    ):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.tokens = set()  # type: ignore[attr-defined]
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{running.server_address[1]}/")
        yield running
        running.shutdown()
        thread.join()


def needs(*downloads: Repository) -> Needs:
    return Needs("r.yaml", "cuda", downloads=downloads)


def test_everything_is_asked_for_and_told(server: http.server.ThreadingHTTPServer) -> None:
    found = read_hub(needs(OPEN, GATED, ABSENT, ADAPTER, DATA))
    assert (found.error, found.token) == ("", "")
    assert dict(found.answers) == {
        OPEN: "there", GATED: "forbidden", ABSENT: "unknown", ADAPTER: "there", DATA: "there",
    }  # fmt: skip
    gated, absent = judge_hub(found, needs())
    assert (gated.state, gated.message) == ("fail", "model.path: org/gated is gated, and not open to anonymous users")
    assert "accept its terms at" in gated.fix
    assert "hf auth login" in gated.fix
    assert (absent.state, absent.message) == (
        "fail", "model.path: the hub shows no org/absent at revision v2 to anonymous users",
    )  # fmt: skip


def test_the_token_is_sent_and_never_shown(
    server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    found = read_hub(needs(GATED))
    assert server.tokens == {"Bearer hf_verysecret"}  # type: ignore[attr-defined]
    assert found.token == "HF_TOKEN"
    assert "verysecret" not in repr((found, judge_hub(found, needs())))


def test_a_token_of_a_login_is_found(cache: Path) -> None:
    (cache / "token").write_text("hf_secret\n")
    assert read_hub(Needs()).token == str(cache / "token")


def test_a_hub_that_is_away_is_a_warning_without_a_recipe() -> None:
    (finding,) = judge_hub(read_hub(Needs()), Needs())
    assert finding.state == "warn"
    assert finding.message == "http://127.0.0.1:9 does not answer: Connection refused"


def test_a_hub_that_is_away_is_a_failure_for_what_is_not_cached(cache: Path) -> None:
    found = read_hub(needs(OPEN, DATA))
    (finding,) = judge_hub(found, needs(OPEN, DATA))
    assert finding.state == "fail"
    assert "org/open (model.path), org/rows (data.train.0.path)" in finding.message
    assert "hf download org/rows --repo-type dataset" in finding.fix
    for folder in ("models--org--open/snapshots/c1", "datasets--org--rows/snapshots/c1"):
        (cache / "hub" / folder).mkdir(parents=True)
    (cache / "hub/models--org--open/refs").mkdir()
    (cache / "hub/models--org--open/refs/main").write_text("c1")
    (cached,) = judge_hub(read_hub(needs(OPEN, DATA)), needs(OPEN, DATA))
    assert cached.state == "pass"


def test_offline_nothing_is_asked(server: http.server.ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [each.state for each in judge_hub(read_hub(Needs()), Needs())] == ["pass"]
    (finding,) = judge_hub(read_hub(needs(OPEN)), needs(OPEN))
    assert (finding.state, finding.fix.split(";")[0]) == ("fail", "unset HF_HUB_OFFLINE")
    assert server.tokens == set()  # type: ignore[attr-defined]


def test_a_name_server_that_does_not_answer_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """`urlopen`'s limit does not count the time that a name takes."""
    forever = threading.Event()
    monkeypatch.setattr(hub, "_ask", lambda *_: forever.wait(30))
    monkeypatch.setattr(hub, "SECONDS", -0.9)
    assert "no answer within" in read_hub(Needs()).error
    forever.set()


def test_a_hub_that_answers_is_said() -> None:
    (finding,) = judge_hub(Hub("https://huggingface.co", token="HF_TOKEN"), Needs())
    assert (finding.state, finding.message) == ("pass", "https://huggingface.co answers (token from HF_TOKEN)")
