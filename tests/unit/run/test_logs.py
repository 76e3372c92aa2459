"""The line that says why, in logs as the real programs write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ptcli.run.logs import first_error, tail

PLAIN = """\
loading
Traceback (most recent call last):
  File "worker.py", line 3, in <module>
    raise ValueError("no such answer")
ValueError: no such answer
"""
CHAINED = """\
Traceback (most recent call last):
  File "a.py", line 1, in f
ConnectionRefusedError: [Errno 111] Connection refused

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 2, in g
requests.exceptions.ConnectionError: The vLLM server can't be reached at http://127.0.0.1:1
"""
LAUNCHER = (
    PLAIN
    + """\
Traceback (most recent call last):
  File "accelerate", line 8, in <module>
subprocess.CalledProcessError: Command '['python']' returned non-zero exit status 1.
"""
)
KILLED_CHILD = """\
step 1
Traceback (most recent call last):
  File "accelerate", line 8, in <module>
subprocess.CalledProcessError: Command '['python']' died with <Signals.SIGKILL: 9>.
"""
VLLM = """\
(APIServer pid=12) INFO 10-01 12:00:00 [api.py:1] vLLM API server version 0.27.1
(EngineCore pid=34) ERROR 10-01 12:00:01 [core.py:9] EngineCore encountered a fatal error.
(EngineCore pid=34) ERROR 10-01 12:00:01 [core.py:9] Traceback (most recent call last):
(EngineCore pid=34) ERROR 10-01 12:00:01 [core.py:9]   File "core.py", line 1, in run
(EngineCore pid=34) ERROR 10-01 12:00:01 [core.py:9] NotImplementedError: meta tensors
(APIServer pid=12) Traceback (most recent call last):
(APIServer pid=12)   File "api.py", line 2, in serve
(APIServer pid=12) vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.
"""
LOST_ENGINE = """\
(APIServer pid=12) WARNING 10-01 12:00:00 [utils.py:9] Found ulimit of 20000, which can cause `OSError: [Errno 24]`.
(APIServer pid=12) WARNING 10-01 12:00:01 [client.py:7] [shutdown] MPClient: engine core exited unexpectedly; cleanup
(APIServer pid=12) ERROR 10-01 12:00:01 [async.py:7] AsyncLLM output_handler failed.
(APIServer pid=12) ERROR 10-01 12:00:01 [async.py:7] Traceback (most recent call last):
(APIServer pid=12) ERROR 10-01 12:00:01 [async.py:7] vllm.v1.engine.exceptions.EngineDeadError: EngineCore met an issue.
nanobind: leaked 514 functions!
 - leaked function "get_result"
 - ... skipped remainder
"""
LAST = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore met an issue."
RANKS = """\
[rank1]: Traceback (most recent call last):
[rank1]:   File "worker.py", line 3, in <module>
[rank1]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""
KILLED_RANK = """\
[rank0]: Traceback (most recent call last):
[rank0]: RuntimeError: Read error: Connection reset by peer.
error: RuntimeError: Read error: Connection reset by peer.
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
ptcli.train.worker FAILED
Failures:
[1]:
  time      : 2026-11-22_21:07:44
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 24571)  (SIGKILL)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 24571
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 24570)
  error_file: <N/A>
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
"""
IGNORED = (
    """\
Exception ignored in: <function Pool.__del__ at 0x7f>
Traceback (most recent call last):
  File "pool.py", line 1, in __del__
AttributeError: 'NoneType' object has no attribute 'close'
"""
    + PLAIN
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (PLAIN, "ValueError: no such answer"),
        (CHAINED, "requests.exceptions.ConnectionError: The vLLM server can't be reached at http://127.0.0.1:1"),
        (LAUNCHER, "ValueError: no such answer"),
        (KILLED_CHILD, "its process died with <Signals.SIGKILL: 9>."),
        (VLLM, "NotImplementedError: meta tensors"),
        (LOST_ENGINE, "[shutdown] MPClient: engine core exited unexpectedly; cleanup"),
        (KILLED_RANK, "rank 1 died of signal 9 (SIGKILL)"),
        (RANKS, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"),
        (IGNORED, "ValueError: no such answer"),
        ("vllm: error: unrecognized arguments: --foo\n", "vllm: error: unrecognized arguments: --foo"),
        ("Fatal Python error: Segmentation fault\n\nThread 1:\n", "Fatal Python error: Segmentation fault"),
        ("{'loss': '0.1'}\nall is well\n", None),
        ("", None),
    ],
)
def test_first_error(tmp_path: Path, text: str, line: str | None) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert first_error(log) == line


def test_tail_is_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(
        b"old\n" * 30 + b"\x1b[31mred\x1b[0m\n  0%|   | 0/9\r 50%|#  | 5/9\r100%|###| 9/9\nb\xffd\n\n" + b"x" * 1000
    )
    lines = tail(log, 4)
    assert lines[:3] == ["red", "100%|###| 9/9", "b\ufffdd"]
    assert len(lines[3]) == 400


def test_tail_leaves_out_what_dying_interpreters_say(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(LOST_ENGINE)
    assert tail(log, 1) == ["(APIServer pid=12) ERROR 10-01 12:00:01 [async.py:7] " + LAST]


OWN_WORDS = """\
Generating: 0 examples Failed to load JSON with error <class 'ArrowInvalid'>
error: data.train.0: cannot read rows.jsonl
Traceback (most recent call last):
  File "launch.py", line 999, in simple_launcher
subprocess.CalledProcessError: Command '['python', '-m', 'worker']' returned non-zero exit status 1.
"""


def test_a_launchers_traceback_is_left_out_when_its_child_has_spoken(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(OWN_WORDS)
    assert tail(log)[1:] == ["error: data.train.0: cannot read rows.jsonl"]
    assert first_error(log) == "data.train.0: cannot read rows.jsonl"


def test_a_launchers_traceback_is_shown_when_it_is_all_there_is(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(OWN_WORDS.partition("rows.jsonl\n")[2])
    assert len(tail(log)) == 3


def test_no_log_no_lines(tmp_path: Path) -> None:
    assert tail(tmp_path / "none") == []
    assert first_error(tmp_path / "none") is None


def test_secrets_in_logs_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    log = tmp_path / "log"
    log.write_text("HTTPError: 401 with hf_0123456789\n")
    assert first_error(log) == "HTTPError: 401 with ${oc.env:HF_TOKEN}" == tail(log)[0]
