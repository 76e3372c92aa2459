"""Verification in a process of its own, beside the merge: importing transformers and PEFT takes longer than writing a
small model, and what base and adapter compute can be known before the merged weights are."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, cast

from ptcli.errors import WorkError
from ptcli.merge.model import MergePlan, Progress, Verification

start = subprocess.Popen


class Verifier:
    """A process that verifies one merge."""

    def __init__(self, connection: Connection, process: subprocess.Popen[bytes], errors: IO[bytes]):
        self._connection, self._process, self._errors = connection, process, errors

    def prepare(self, plan: MergePlan, folder: Path) -> None:
        """Let it begin with what needs no merged weights. The folder has its configs."""
        with suppress(BrokenPipeError, ConnectionResetError):  # `finish` tells why
            self._connection.send((plan, folder))

    def finish(self, progress: Progress) -> Verification:
        """Let it look at the folder, which is written. Raises WorkError when that is not what it should be."""
        try:
            self._connection.send(None)
            while isinstance(told := self._connection.recv(), tuple):
                progress(*told)
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise WorkError(f"verification ended without a result: {self._last_words()}") from error
        if isinstance(told, WorkError):
            raise told
        return cast(Verification, told)

    def end(self) -> None:
        self._connection.close()
        self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return said[-1] if said else f"exit code {code}"


@contextmanager
def begun_verifier() -> Iterator[Verifier]:
    """A process that is ready to verify, or soon will be; it ends with the block."""
    mine, theirs = Pipe()
    with tempfile.TemporaryFile() as errors:
        argv = [sys.executable, "-m", "ptcli.merge.verify_child", str(theirs.fileno())]
        # A group of its own: Ctrl-C ends it through its parent.
        process = start(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=(theirs.fileno(),),
            process_group=0,
        )  # fmt: skip
        theirs.close()
        begun = Verifier(mine, process, errors)
        try:
            yield begun
        finally:
            begun.end()
