"""Where images of strangers are decoded and resized: in processes that can be killed, from which bytes of pixels come back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idefics.errors import ImageError
from idefics.processor.prepared import LevelMaker, PreparedImage, prepared_of
from idefics.server.errors import ClientGone
from idefics.server.images.data_urls import data_bytes
from idefics.server.images.decoder import Decoder, Left, begun
from idefics.server.limits import ServerLimits
from idefics.server.processes.pool import Killed, Pool

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Decoders", "Decoding"]


@dataclass(frozen=True, kw_only=True)
class _Task:
    """An image to decode.

    Attributes:
        encoded: its bytes, or a data URL.
        where: what messages call it.
        maker: splits and resizes it.
        limits: of the server.
        left: of them for this request.
    """

    encoded: bytes | str
    where: str
    maker: LevelMaker
    limits: ServerLimits
    left: Left


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    """What has become of it.

    Attributes:
        levels: of every sub-image.
        size: bytes of the encoded image.
        seconds: that it took.
        left: of the limits.
    """

    levels: list[NDArray[np.uint8]]
    size: int
    seconds: float
    left: Left


class Decoders:
    """The processes; several applications of one program may share them.

    Args:
        limits: of the server: how many there are, and what an image may cost them.
        killed: told why whenever one is killed, in any thread.
    """

    def __init__(self, limits: ServerLimits, killed: Callable[[str], None] = lambda _reason: None) -> None:
        self._pool: Pool[_Task, _Decoded] = Pool(
            "decoder", _made, size=limits.workers, seconds=limits.decode_seconds, memory=limits.decode_memory, killed=killed
        )

    def of_request(self, maker: LevelMaker, limits: ServerLimits) -> Decoding:
        """The decoding of one request's images.

        Args:
            maker: splits and resizes them.
            limits: of the server that was asked.
        """
        return Decoding(self._pool, maker, limits)

    def warm(self) -> None:
        """Begins all processes; does not wait for them."""
        self._pool.warm()

    @property
    def healthy(self) -> bool:
        """Whether images can be decoded."""
        return self._pool.healthy

    def close(self) -> None:
        """Ends all processes."""
        self._pool.close()


class Decoding:
    """The images of one request, decoded one after the other."""

    def __init__(self, pool: Pool[_Task, _Decoded], maker: LevelMaker, limits: ServerLimits) -> None:
        self._pool = pool
        self._maker = maker
        self._limits = limits
        self._left = Left.of(limits)
        self._seconds = limits.request_decode_seconds

    async def image(self, encoded: bytes | str, where: str) -> tuple[PreparedImage, int]:
        """An image as the processor takes it, and its encoded bytes.

        Args:
            encoded: bytes, or a data URL.
            where: what messages call it.

        Raises:
            ImageError: it is no image, or costs more than it may; says which bound.
            Closing: there is no process to decode it in.
        """
        task = _Task(encoded=encoded, where=where, maker=self._maker, limits=self._limits, left=self._left)
        seconds = min(self._limits.decode_seconds, self._seconds)
        try:
            done = await self._pool.run(task, seconds=seconds)
        except Killed as killed:
            raise self._refused(killed, where, seconds) from None
        self._left = done.left
        self._seconds -= done.seconds
        if self._seconds <= 0:
            raise self._refused(Killed("time"), where, seconds)
        return prepared_of(done.levels, self._maker), done.size

    def _refused(self, killed: Killed, where: str, seconds: float) -> ImageError | ClientGone:
        if killed.reason == "left":
            return ClientGone("nobody waits for the answer any more")
        if killed.reason == "time" and seconds < self._limits.decode_seconds:
            together = f"{self._limits.request_decode_seconds:g} s"
            return ImageError(f"the images of this request took over {together} together to decode; give fewer or smaller ones")
        if killed.reason == "time":
            return ImageError(
                f"{where} took over {seconds:g} s to decode; make it smaller, or save it as a PNG or baseline JPEG"
            )
        if killed.reason == "memory":
            return ImageError(
                f"{where} took more than {self._limits.decode_memory} bytes of memory to decode; "
                "make it smaller, or save it as a PNG or baseline JPEG"
            )
        return ImageError(f"{where} cannot be decoded: it ended its decoder; save it as a PNG or baseline JPEG")


def _made() -> Callable[[_Task], _Decoded]:
    """What a process begins with."""
    begun()
    return _decoded


def _decoded(task: _Task) -> _Decoded:
    began, data = time.monotonic(), task.encoded
    if isinstance(data, str):
        data = data_bytes(data, task.limits.image_bytes)
    decoder = Decoder(task.limits, task.left)
    image = decoder.image(data, task.where)
    levels = task.maker.levels([image], workers=1)
    return _Decoded(levels=levels, size=len(data), seconds=time.monotonic() - began, left=decoder.left)
