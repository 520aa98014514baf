"""The command line's beginning: as `idefics`, as `python -m idefics`, and as `torchrun -m idefics` starts it."""

from __future__ import annotations

import sys

__all__ = ["run"]


def run() -> None:
    """Runs the command line; Ctrl-C while it is imported ends it as quietly as later."""
    try:
        from idefics.cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    run()
