"""Shell text that a person can paste: single commands, and the run as one script."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from ptcli.plan.launch import LAUNCHER_PREFIXES, LAUNCHER_VARIABLES
from ptcli.plan.model import Server, Step
from ptcli.recipe.secrets import REFERENCE

_HEADER = """#!/usr/bin/env bash
# What `ptcli train` starts, to run by hand (in the environment that ptcli is installed in). ptcli also watches both
# sides, ends them together and keeps their logs apart; this script only starts them in order.
set -euo pipefail
"""

_TRAP = """trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true' EXIT
"""

_WAIT = """until {probe} 2>/dev/null; do
  kill -0 "$server" || {{ echo 'the rollout server did not start' >&2; {otherwise}; }}
  sleep 2
done
"""

_WAIT_APART = """until {probe} 2>/dev/null; do
  sleep 2
done
"""

_PROBE = "import sys, urllib.request as r; r.build_opener(r.ProxyHandler({})).open(sys.argv[1], timeout=5)"


def shell_quote(text: str) -> str:
    """One shell word. `${oc.env:NAME}` becomes `"$NAME"`, so that a secret is read where the command runs."""
    parts: list[str] = []
    end = 0
    for found in REFERENCE.finditer(text):
        parts.append(shlex.quote(text[end : found.start()]) if found.start() > end else "")
        parts.append(f'"${{{found[1]}:-{found[2]}}}"' if found[2] is not None else f'"${found[1]}"')
        end = found.end()
    parts.append(shlex.quote(text[end:]) if end < len(text) or not parts else "")
    return "".join(parts)


def shell_command(step: Step) -> str:
    """A step as one command over several lines, its environment in front."""
    env = [f"{name}={shell_quote(value)}" for name, value in step.env.items()]
    words = ["env", *env, *_lines(step.argv)] if env else list(_lines(step.argv))
    return " \\\n  ".join(words)


def clean_environment() -> str:
    """The line that forgets what another launcher left in the environment, as `inherited` does. Bash."""
    names = [*sorted(LAUNCHER_VARIABLES), *(f"${{!{prefix}@}}" for prefix in LAUNCHER_PREFIXES)]
    return f"unset {' '.join(names)}"


def pasted_server(step: Step, server: Server) -> str:
    """The server in the background of an interactive shell, and a wait until the trainer can be started."""
    return f"{_background(step)}{_wait(server, otherwise='break')}"


PASTED_END = 'kill "$server"; wait "$server"'
"""What ends the server of `pasted_server`."""


def launch_script(steps: Iterable[Step], server: Server | None, after: Step | None = None) -> str:
    """The whole run as a script: server, wait until it is healthy, trainer, what comes after, server down again."""
    steps = tuple(steps)
    rollouts = [step for step in steps if step.name == "rollouts"]
    trainers = [step for step in steps if step.name == "trainer"]
    text = f"{_HEADER}{clean_environment()}\n"
    if rollouts and not trainers:
        return f"{text}\nexec {shell_command(rollouts[0])}\n"
    if rollouts and server is not None and rollouts[0].node:
        text += f"\n{_on_node(rollouts[0].node, f'exec {shell_command(rollouts[0])}')}"
        text += f"\n{_on_node(0, _wait(server, apart=True))}"
    elif rollouts and server is not None:
        text += f"\n{_on_first_node(_start(rollouts[0], server), len(trainers))}"
    text += f"\n{_trainers(trainers)}\n"
    return f"{text}\n{_on_first_node(shell_command(after), len(trainers))}\n" if after else text


def _lines(argv: tuple[str, ...]) -> list[str]:
    """The program and its positional words on the first line, then an option with its value on each."""
    lines: list[str] = []
    for word in argv:
        if lines and not word.startswith("--") and (len(lines) == 1 or " " not in lines[-1]):
            lines[-1] += " " + shell_quote(word)
        else:
            lines.append(shell_quote(word))
    return lines


def _start(step: Step, server: Server) -> str:
    return f"{_background(step)}{_TRAP}{_wait(server, otherwise='exit 1')}"


def _background(step: Step) -> str:
    return f"{shell_command(step)} &\nserver=$!\n"


def _wait(server: Server, *, otherwise: str = "exit 1", apart: bool = False) -> str:
    probe = f"python -c {shlex.quote(_PROBE)} {shlex.quote(server.url + '/health')}"
    return (_WAIT_APART if apart else _WAIT).format(probe=probe, otherwise=otherwise)


def _on_first_node(text: str, nodes: int) -> str:
    return text if nodes <= 1 else _on_node(0, text)


def _on_node(node: int, text: str) -> str:
    return f'if [ "${{NODE_RANK:?}}" = {node} ]; then\n{text.rstrip()}\nfi\n'


def _trainers(steps: list[Step]) -> str:
    if len(steps) == 1:
        return shell_command(steps[0])
    cases = "\n".join(f"{step.node})\n{shell_command(step)}\n;;" for step in steps)
    return f'case "${{NODE_RANK:?}}" in\n{cases}\nesac'
