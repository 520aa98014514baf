"""Blocks of the cache: who holds which, and which full ones can be found again by what they hold. No torch here.

A block keeps the keys and values of `size` consecutive tokens. What stands in it depends on everything before it, so a full
block is named by a digest of all tokens up to its end, and of the images that they draw on. A later request that begins alike
takes the same blocks instead of computing them. Blocks that nobody holds stay findable until their room is needed; those
unused for longest go first.

What is masked is multiplied by zero, and what is no number times zero is none either. So blocks in which such may stand are
doubted until a token was chosen by what they hold, and wiped before somebody else writes to them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

__all__ = ["BlockPool", "block_digest"]


class BlockPool:
    """A fixed number of blocks, counted, shared and found again.

    Args:
        blocks: how many there are.
        size: tokens that one keeps.
    """

    def __init__(self, blocks: int, size: int) -> None:
        assert blocks > 0, "a pool of no blocks"
        assert size > 0, "blocks of no tokens"
        self.blocks = blocks
        self.size = size
        self._users = [0] * blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(blocks))  # the next to be taken first
        self._digests: dict[int, bytes] = {}
        self._found: dict[bytes, int] = {}
        self._doubtful: set[int] = set()
        self._unclean: list[int] = []

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Blocks that so many tokens take."""
        return -(-tokens // self.size)

    def take(self, count: int) -> list[int]:
        """So many blocks, empty, held once; there must be as many free."""
        assert count <= len(self._free), f"{count} blocks of {len(self._free)} free ones"
        taken = []
        for _ in range(count):
            block, _ = self._free.popitem(last=False)
            digest = self._digests.pop(block, None)
            if digest is not None:
                del self._found[digest]
            if block in self._doubtful:
                self._doubtful.remove(block)
                self._unclean.append(block)
            self._users[block] = 1
            taken.append(block)
        return taken

    def find(self, digests: Sequence[bytes]) -> list[int]:
        """Blocks that hold the beginning of what these digests name, each held once more than before."""
        found = []
        for digest in digests:
            block = self._found.get(digest)
            if block is None:
                break
            if self._users[block] == 0:
                del self._free[block]
            self._users[block] += 1
            found.append(block)
        return found

    def name(self, block: int, digest: bytes) -> None:
        """Lets a full block be found by its digest, unless another with the same content already can."""
        assert self._users[block] > 0, f"block {block} is held by nobody"
        if digest not in self._found and block not in self._digests:
            self._found[digest] = block
            self._digests[block] = digest

    def release(self, blocks: Sequence[int]) -> None:
        """Gives up one hold on each; of a sequence's blocks the last ones are taken by others first."""
        for block in reversed(blocks):
            assert self._users[block] > 0, f"block {block} is released more often than held"
            self._users[block] -= 1
            if self._users[block] == 0:
                self._free[block] = None
                if block not in self._digests:
                    self._free.move_to_end(block, last=False)

    def forget(self, blocks: Iterable[int]) -> None:
        """Lets blocks no longer be found, because what they hold is about to be lost."""
        for block in blocks:
            digest = self._digests.pop(block, None)
            if digest is not None:
                del self._found[digest]

    def doubt(self, blocks: Iterable[int]) -> None:
        """Takes note that blocks may hold what is no number."""
        self._doubtful.update(blocks)

    def trust(self, blocks: Iterable[int]) -> None:
        """Takes note that blocks hold numbers only."""
        self._doubtful.difference_update(blocks)

    def doubts(self, block: int) -> bool:
        """Whether a block may hold what is no number."""
        return block in self._doubtful

    def unclean(self) -> list[int]:
        """Blocks that were doubted when they were taken, since this was last asked: to be wiped before they are written to."""
        unclean, self._unclean = self._unclean, []
        return unclean

    def users(self, block: int) -> int:
        """How often a block is held."""
        return self._users[block]


def block_digest(before: bytes, ids: Sequence[int], drawn: Sequence[bytes | None]) -> bytes:
    """The name of a full block: what stands in it depends on these tokens and on everything before them.

    Args:
        before: name of the block before; empty for the first.
        ids: the block's token ids.
        drawn: of each token, the digest of the image it draws on, or None.
    """
    digest = blake2b(before, digest_size=16)
    previous: bytes | None = b""
    for token, image in zip(ids, drawn, strict=True):
        digest.update(token.to_bytes(4, "little", signed=True))
        if image != previous:
            digest.update(b"none" if image is None else b"of" + image)
            previous = image
    return digest.digest()
