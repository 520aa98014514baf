"""How long each part of the server is waited for beyond its time, and why in this order.

A request's time (`--deadline`) is over for the engine first. It says so at its next step, with what the answer has come to;
if it does not within `ENGINE_SAYS`, its side in the event loop says so instead; and if nothing was said at all by `ROUTE_SAYS`,
the route does, which knows least and must therefore come last.

A server that stops lets requests end for `--drain` seconds. Then the engine has `STEP_ENDS` to leave after the step that it is
in, and answers `ANSWERS_SENT` to reach their readers: together less than the 5 seconds that whoever stops a server is told to
wait beyond the drain.
"""

from __future__ import annotations

__all__ = ["ANSWERS_SENT", "ENGINE_SAYS", "ROUTE_SAYS", "STEP_ENDS"]

ENGINE_SAYS = 2.0
"""Seconds after a request's deadline in which the engine may say that it is over."""
ROUTE_SAYS = 5.0
"""Seconds after a request's deadline in which anybody may: more than `ENGINE_SAYS`."""
STEP_ENDS = 2.0
"""Seconds that the engine gets to end its step when it is told to stop."""
ANSWERS_SENT = 2
"""Seconds, whole ones for uvicorn, for answers that are being sent and requests that are being prepared when it stops."""
