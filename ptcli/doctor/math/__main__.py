"""`python -m ptcli.doctor.math RESULT`: check every identity, and append each outcome to RESULT as a line of JSON.

The first line says how many there are, and before each outcome stands the id of what is being checked, so that a reader
knows what took a process down with it.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any


def main(result: Path) -> None:
    warnings.simplefilter("ignore")
    with result.open("a", encoding="utf-8") as file:

        def tell(facts: dict[str, Any]) -> None:
            file.write(json.dumps(facts) + "\n")
            file.flush()

        from ptcli.doctor.math.registry import IDENTITIES

        tell({"count": len(IDENTITIES)})
        for each in IDENTITIES:
            tell({"checking": each.id})
            tell(each.check().as_dict())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
