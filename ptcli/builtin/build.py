"""Make everything that ships here anew: `python -m ptcli.builtin.build` (three to four minutes on one core)."""

from __future__ import annotations

import os

from ptcli.builtin import MODEL, make_data


def main() -> None:
    # One thread: more would only wait for each other on matrices this small, and sums would come in another order.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for path in make_data.write_all():
        print(f"{path.name}: {path.stat().st_size} bytes")
    from ptcli.builtin.make_tokenizer import make_tokenizer
    from ptcli.builtin.train_model import train_model

    tokenizer = make_tokenizer()
    train_model(tokenizer).save_pretrained(MODEL)
    tokenizer.save_pretrained(MODEL)
    for path in sorted(MODEL.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
