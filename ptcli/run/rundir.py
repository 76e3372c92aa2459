"""The run directory: who may use it, what is written before the start, and `status.json`."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from ptcli.errors import Problem, RequestError
from ptcli.events import Event
from ptcli.plan.model import Plan
from ptcli.run.masking import mask

State = Literal["planned", "serving", "training", "finished", "failed", "stopped"]
RUNNING: tuple[State, ...] = ("planned", "serving", "training")
"""States that a run leaves again."""

REQUEST = "logs/checkpoint.request"
"""A file by which the trainer is asked to save a checkpoint and end (`ptcli.train.stopping`)."""
EARLIER = "earlier"
"""Folder for checkpoints that a run which goes on from before them would write again."""

_SIGNS = (
    "recipe.resolved.yaml", "status.json", "checkpoint-[0-9]*", "model.safetensors", "model-*.safetensors",
    "adapter_model.safetensors",
)  # fmt: skip
"""What tells that a run lives here."""
_LEFT_BY_A_RUN = (
    *_SIGNS, "plan.json", "launch.sh", "stack.json", "accelerate.yaml", "metrics.jsonl", "completions",
    "completions.jsonl", "start", ".start.*", "merged", ".merged.merging-*", EARLIER, REQUEST,
    "logs/rollouts.log", "logs/trainer.log", "logs/trainer.*.log", "logs/merge.log", "logs/heartbeat.json",
    "logs/heartbeat.json.part", "logs/stacks-*.txt",
    "model.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json",
    "training_args.bin", "trainer_state.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
    "processor_config.json", "preprocessor_config.json",
)  # fmt: skip
"""All that `--overwrite` removes. Other files stay: they are not ours."""
_LEFT_BY_A_JOB = ("slurm", "logs/slurm-*.out")
"""What a new job removes besides. A run never does: it may be that very job's."""
_MODEL_CARD = "README.md"
"""TRL writes one wherever it saves. Not removed, since people have files of that name, but not to be lost either."""
_FRESH = ("logs/heartbeat.json", REQUEST)
"""What even a resumed run starts without."""


@dataclass(frozen=True)
class Status:
    """`status.json`."""

    state: State
    cause: str | None
    """Why it failed or was stopped; None otherwise."""
    step: int
    """Finished steps."""
    exit_code: int | None
    """Exit code of ptcli; None while the run goes on."""
    updated: str
    """ISO 8601, UTC."""
    events: tuple[Event, ...] = ()
    """What the guards saw."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; `events` only where there are some."""
        values = asdict(self)
        events = [event.as_dict() for event in self.events]
        return values | {"events": events} if events else {k: v for k, v in values.items() if k != "events"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Status:
        """Raises KeyError, TypeError or AttributeError for what no status is."""
        return cls(**values | {"events": tuple(Event.from_dict(event) for event in values.get("events", ()))})


class RunDirectory:
    """One run's directory. A context manager from `prepare` on: no other ptcli may use it meanwhile."""

    def __init__(self, path: Path):
        self.path = path
        self.logs = path / "logs"
        self.heartbeat = self.logs / "heartbeat.json"
        self.metrics = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self._lock: int | None = None
        self._status_before: bytes | None = None

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lock(self) -> tuple[int, ...]:
        """The file descriptor that holds the lock, if any. A child that inherits it holds the lock too."""
        return () if self._lock is None else (self._lock,)

    def log(self, step: str) -> Path:
        return self.logs / f"{step}.log"

    def check(self, *, overwrite: bool = False, resume: bool = False, smoke: bool = False) -> None:
        """Raise RequestError when no run may start here. Writes nothing."""
        try:
            self._check_place()
            self._check_lock()
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise self._unusable(error) from error
        if resume or overwrite or (smoke and self._holds_a_smoke()):
            return
        if self._holds_a_run():
            fix = "choose another output_dir, or throw that run away with --overwrite"
            raise RequestError(Problem(f"{self.path} holds another run", fix, key=("output_dir",)))
        self._check_strangers()

    def prepare(
        self, plan: Plan, *, overwrite: bool = False, resume: bool = False, step: int = 0, aside: Iterable[Path] = ()
    ) -> RunDirectory:
        """Check, lock, and write all that a run has before it starts.

        A run that resumes has finished `step` steps; the checkpoints `aside` are moved out of its way.

        Raises:
            RequestError: the directory holds another run or is in use, a program of the plan is missing (nothing was
                written then), or the disk refuses.
        """
        from ptcli.run.processes import check_programs

        check_programs(plan)
        self.check(overwrite=overwrite, resume=resume, smoke=plan.smoke)
        left = _FRESH if resume else (*_LEFT_BY_A_RUN, *plan.files)
        return self._occupy(left, lambda: self._begin(plan, step, aside))

    def reserve(self, files: Mapping[str, str], *, overwrite: bool = False, resume: bool = False) -> RunDirectory:
        """Check, lock, and write what a run has that waits in a queue. Raises RequestError as `prepare` does."""
        self.check(overwrite=overwrite, resume=resume)
        return self._occupy(() if resume else (*_LEFT_BY_A_RUN, *_LEFT_BY_A_JOB), lambda: self._write_job(files))

    def withdraw(self, files: Iterable[str]) -> None:
        """Take back what `reserve` wrote."""
        for name in files:
            (self.path / name).unlink(missing_ok=True)
        if self._status_before is None:
            self.status_file.unlink(missing_ok=True)
        else:
            self.status_file.write_bytes(self._status_before)

    def _occupy(self, left: Sequence[str], write: Callable[[], None]) -> RunDirectory:
        """Lock the directory, clear it of what was left there, and write to it."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._clear(left)
            write()
        except OSError as error:
            self.close()
            raise self._unusable(error) from error
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Let others use the directory."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def status(self) -> Status | None:
        """What `status.json` says; None when there is none or it can't be read."""
        try:
            return Status.from_dict(json.loads(self.status_file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write_status(
        self,
        state: State,
        *,
        cause: str | None = None,
        step: int = 0,
        exit_code: int | None = None,
        events: tuple[Event, ...] = (),
    ) -> Status:
        """Replace `status.json`, secrets masked. A disk that refuses does not stop a run: it is tried, no more.

        On a full disk the file is written where it lies: so small a text fits into the block that it has.
        """
        updated = datetime.now(UTC).isoformat(timespec="seconds")
        status = Status(state, mask(cause) if cause else None, step, exit_code, updated, events)
        text = _json(status.as_dict())
        try:
            self.write(self.status_file.name, text)
        except OSError:
            with suppress(OSError), self.status_file.open("r+b") as file:
                file.write(text.encode())
                file.truncate()
        return status

    def write(self, name: str, text: str) -> None:
        """Write a file whole or not at all, secrets masked."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        try:
            draft.write_text(mask(text), encoding="utf-8")
            if path.suffix == ".sh":
                draft.chmod(0o755)
            os.replace(draft, path)
        except OSError:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise

    def _begin(self, plan: Plan, step: int, aside: Iterable[Path]) -> None:
        for path in aside:
            self._set_aside(path)
        self._write_plan(plan, step)

    def _set_aside(self, path: Path) -> None:
        place = self.path / EARLIER
        place.mkdir(exist_ok=True)
        names = (path.name if not count else f"{path.name}.{count}" for count in itertools.count())
        path.rename(next(place / name for name in names if not (place / name).exists()))

    def _write_plan(self, plan: Plan, step: int) -> None:
        from ptcli.plan.render import render_json
        from ptcli.run.stack import read_stack

        for name, text in plan.files.items():
            self.write(name, text)
        self.write("plan.json", _json(render_json(plan)))
        self.write("stack.json", _json(read_stack(plan)))
        self.write_status("planned", step=step)

    def _write_job(self, files: Mapping[str, str]) -> None:
        self._status_before = self.status_file.read_bytes() if self.status_file.is_file() else None
        for name, text in files.items():
            self.write(name, text)
        before = self.status()
        self.write_status("planned", step=before.step if before else 0)

    def _unusable(self, error: Exception) -> RequestError:
        reason = getattr(error, "strerror", None) or str(error)
        culprit = getattr(error, "filename", None)
        if culprit and Path(culprit).parent == self.path:
            reason += f" ({Path(culprit).name})"
        message = f"cannot write to {self.path}: {reason}"
        return RequestError(Problem(message, "choose another output_dir", key=("output_dir",)))

    def _check_place(self) -> None:
        problem = None
        # Not Path.home(), which raises where a user has no home.
        if self.path.resolve() in (Path(self.path.anchor), Path(os.path.expanduser("~")).resolve()):
            problem = f"{self.path} is no place for a run, which wants a folder of its own"
        elif self.path.is_symlink() and not self.path.exists():
            problem = f"{self.path} is a link to {os.readlink(self.path)}, which is not there"
        nearest = next(path for path in (self.path, *self.path.parents) if os.path.exists(path))
        if problem:
            pass
        elif not nearest.is_dir():
            problem = f"{nearest} is a file, not a directory"
        elif not os.access(nearest, os.W_OK | os.X_OK):
            problem = f"{nearest} is not writable"
        if problem:
            raise RequestError(Problem(problem, "choose another output_dir", key=("output_dir",)))

    def _check_lock(self) -> None:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            descriptor = os.open(self._lock_file, os.O_RDWR)
            try:
                _lock_or_refuse(descriptor, self.path)
            finally:
                os.close(descriptor)

    @property
    def _lock_file(self) -> Path:
        return self.logs / ".lock"

    def _take_lock(self) -> None:
        self._lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        _lock_or_refuse(self._lock, self.path)
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def _check_strangers(self) -> None:
        """Raise RequestError for files that no run left here, and that this one would replace."""
        found = sorted({str(path.relative_to(self.path)) for path in self._matching((*_LEFT_BY_A_RUN, _MODEL_CARD))})
        if found:
            named = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
            message = f"{self.path} holds files that a run would replace ({named})"
            fix = "choose another output_dir, or have them replaced with --overwrite"
            raise RequestError(Problem(message, fix, key=("output_dir",)))

    def _holds_a_run(self) -> bool:
        return any(True for _ in self._matching(_SIGNS))

    def _holds_a_smoke(self) -> bool:
        with suppress(OSError, ValueError):
            stack = cast(dict[str, Any], json.loads((self.path / "stack.json").read_text(encoding="utf-8")))
            return stack.get("smoke") is True
        return False

    def _matching(self, patterns: Sequence[str]) -> Iterator[Path]:
        for pattern in patterns:
            yield from self.path.glob(pattern)

    def _clear(self, patterns: Sequence[str]) -> None:
        for path in list(self._matching(patterns)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def is_cleared(run: Path, path: Path) -> bool:
    """Whether a run that starts in `run` removes `path`, or what is in it. Both resolved."""
    if path == run:
        return True
    inside = path.relative_to(run) if path.is_relative_to(run) else None
    tops = (inside, *inside.parents) if inside else ()
    return any(each.parts and run.joinpath(each).match(str(run / left)) for each in tops for left in _LEFT_BY_A_RUN)


def _lock_or_refuse(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        message = f"{path} is in use by another ptcli (pid {owner})"
        fix = "wait for it, end it, or choose another output_dir"
        raise RequestError(Problem(message, fix, key=("output_dir",))) from None
    except OSError:
        # A file system without locks (some network mounts): better to run without one than not at all.
        pass


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
