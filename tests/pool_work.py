"""Tasks for a pool of processes: what strangers' content may do to one."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import time
from collections.abc import Callable

from idefics.errors import InputError


def made() -> Callable[[tuple[str, object]], object]:
    return done


def broken() -> Callable[[object], object]:
    raise RuntimeError("no such library")


def done(task: tuple[str, object]) -> object:
    kind, given = task
    match kind:
        case "who":
            return os.getpid()
        case "echo":
            return given
        case "sleep":
            time.sleep(60)
        case "hold the interpreter":
            re.match(r"(a*)*b", "a" * 40)
        case "bytes":
            return len(bytearray(int(str(given))))
        case "abort":
            os.abort()
        case "crash":
            ctypes.string_at(0)
        case "exit":
            sys.exit(3)
        case "complain":
            os.write(2, b"a line that is no JSON\n")
            print("another", file=sys.stderr, flush=True)
            print("one more", flush=True)
        case "refuse":
            raise InputError("no such thing")
    return None
