"""`python -m idefics`: the command line, where no script is on the path, and as `torchrun -m idefics` starts it."""

from __future__ import annotations

from idefics.cli import main

if __name__ == "__main__":
    main()
