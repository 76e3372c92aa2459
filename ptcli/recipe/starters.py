"""The commented recipes that ship, one a method, as starting points for a user's own (`ptcli init`)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ptcli.errors import Problem, RequestError
from ptcli.methods import find_method
from ptcli.recipe.files import near_sibling

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
"""Where the shipped recipes and their schemas lie."""

_SCHEMA_LINE = re.compile(r"\A# yaml-language-server: \$schema=(\S+)\n")


def starter(method: str, out: Path | None = None) -> str:
    """The shipped recipe of a method, as it reads in the file `out`, or in the working directory when that is None.

    Its schema line names the shipped schema from there, and the commands in its comments name `out`.

    Raises:
        RequestError: when there is no such method, with the nearest one.
    """
    name = find_method(method).name
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    place = out or Path(f"{name}.yaml")
    text = _SCHEMA_LINE.sub(lambda line: _schema_line(line[1], place.parent), text)
    return text.replace(f"recipes/{name}.yaml", str(place))


def write_starter(method: str, out: Path) -> None:
    """Write the shipped recipe of a method to a new file.

    Raises:
        RequestError: when there is no such method, when `out` is there already, or cannot be written.
    """
    text = starter(method, out)
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        what = "a folder" if out.is_dir() else "there already"
        raise RequestError(Problem(f"--out {out} is {what}", "name a new file")) from None
    except FileNotFoundError:
        fix = near_sibling(out.parent) or "make the folder first"
        raise RequestError(Problem(f"--out {out}: there is no folder {out.parent}", fix)) from None
    except (OSError, ValueError) as error:
        raise RequestError(f"--out {out} cannot be written ({getattr(error, 'strerror', None) or error})") from None


def _schema_line(schema: str, folder: Path) -> str:
    """The line by which editors find the schema, for a recipe in `folder`. They follow it without symbolic links."""
    path = os.path.relpath(RECIPES.resolve() / schema, os.path.realpath(folder))
    return f"# yaml-language-server: $schema={Path(path).as_posix()}\n"
