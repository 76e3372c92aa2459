"""`python -m ptcli.merge.verify_child CONNECTION`: verifies a merge, for `ptcli.merge.verifier`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection

from ptcli.errors import WorkError
from ptcli.merge.lean import (
    imported_quickly,
    quicken_transformers,
    skip_bitsandbytes,
    skip_compiler,
    skip_distributed,
    skip_python_operators,
    skip_triton,
)


def main(argv: Sequence[str]) -> int:
    """Is told the plan and the folder, later that the folder is written; tells how far it is, and what it found."""
    connection = Connection(int(argv[0]))
    import_libraries()
    from ptcli.merge.verify import verify_merge

    plan, folder = connection.recv()
    try:
        found = verify_merge(plan, folder, progress=lambda *told: connection.send(told), written=connection.recv)
    except WorkError as error:
        connection.send(error)
    else:
        connection.send(found)
    return 0


def import_libraries() -> None:
    """What verification needs of torch, transformers and PEFT."""
    skip_bitsandbytes()
    skip_triton()
    skip_python_operators()
    quicken_transformers()
    with imported_quickly():
        skip_distributed()
        skip_compiler()
        import ptcli.merge.verify  # noqa: F401


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(1)  # who wanted to know is gone
