"""Encoded images by what they show, so that a second turn, or another user, encodes nothing again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

__all__ = ["Encoded", "ImageCache"]

Encoded = tuple[Tensor, ...]
"""What a decoder needs of one image: tensors whose first dimension is 1 (`VisionLanguageModel.project`)."""


class ImageCache:
    """The images used last, up to a number of bytes.

    Args:
        limit: bytes; 0 keeps nothing.

    Attributes:
        bytes: held now.
        hits: images that were there.
        misses: images that were not.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = self.hits = self.misses = 0
        self._images: OrderedDict[bytes, Encoded] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        """Whether the image is there, without looking at it."""
        return digest in self._images

    def get(self, digest: bytes) -> Encoded | None:
        """The image, or None; it is now the one used last."""
        found = self._images.get(digest)
        if found is None:
            self.misses += 1
            return None
        self.hits += 1
        self._images.move_to_end(digest)
        return found

    def put(self, digest: bytes, encoded: Encoded) -> None:
        """Keeps an image if there is room for it at all; those unused for longest make way."""
        size = _bytes(encoded)
        if digest in self._images or size > self.limit:
            return
        self._images[digest] = encoded
        self.bytes += size
        while self.bytes > self.limit:
            self.bytes -= _bytes(self._images.popitem(last=False)[1])


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
