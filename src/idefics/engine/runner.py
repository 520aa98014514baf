"""From what the scheduler planned to logits: one pass over the packed new tokens of all answers.

Letters: P packed tokens, R tokens after which a next one is chosen, D hidden size, V vocabulary, N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from idefics.engine.eyes import ImageEncoder, Picture, side_by_side
from idefics.engine.graphs import DecodeGraphs, graphs_fit
from idefics.engine.image_cache import Encoded, ImageCache
from idefics.engine.intake import Piece
from idefics.engine.limits import Limits, cache_blocks
from idefics.engine.paged_cache import PagedKVCache, Segment
from idefics.engine.upload import uploaded
from idefics.model.base import VisionLanguageModel
from idefics.model.sight import Sight
from idefics.parallel.launch import agreed_least

__all__ = ["Runner"]


class Runner:
    """A model and its cache.

    Args:
        model: in eval mode.
        limits: what to make room for.
        eyes: of the model; None makes some with room for `limits.image_bytes` of encoded images.

    Attributes:
        model: as given.
        eyes: encode what slices need, and keep it.
        cache: keys and values of all sequences.
        blocks: of it.
        graphs: steps of one token per answer, with static shapes; None where there are none.
    """

    def __init__(self, model: VisionLanguageModel, limits: Limits, eyes: ImageEncoder | None = None) -> None:
        self.model = model
        self.eyes = ImageEncoder(model, ImageCache(limits.image_bytes)) if eyes is None else eyes
        self.blocks = agreed_least(model, cache_blocks(model, limits))  # or divided models would plan different passes
        self.cache = PagedKVCache(
            model.config.text_config,
            blocks=self.blocks,
            size=limits.block,
            dtype=model.dtype,
            devices=model.layer_devices,
            heads=model.key_value_heads,
        )
        self._stacked: tuple[list[Picture], Encoded] | None = None
        wanted = limits.graphs if limits.graphs is not None else model.device.type == "cuda"
        self.graphs = DecodeGraphs(model, self.cache) if wanted and graphs_fit(model) else None

    def wipe(self, blocks: Sequence[int]) -> None:
        """Zeros blocks that may hold what is no number."""
        if blocks:
            self.cache.wipe(blocks)

    def rest(self) -> None:
        """Lets go of what only another pass over the same answers would use."""
        self._stacked = None

    def needed(self, piece: Piece) -> list[Picture]:
        """The images that a slice's tokens draw on."""
        source = piece.answer.state.source
        per_image = self.model.sources_per_image
        used = {drawn // per_image for drawn in source.of(piece.start, len(piece.ids)) if drawn >= 0}
        return [source.pictures[image] for image in sorted(used)]

    def lacking(self, piece: Piece) -> Iterator[tuple[int, Picture]]:
        """The images of a slice that are not encoded yet, and the place of the first of its tokens that draws on each."""
        source = piece.answer.state.source
        met: set[int] = set()
        for place, drawn in enumerate(source.of(piece.start, len(piece.ids))):
            image = drawn // self.model.sources_per_image
            if drawn < 0 or image in met:
                continue
            met.add(image)
            picture = source.pictures[image]
            if picture.encoded is None and picture.digest not in self.eyes.images:
                yield place, picture

    def run(self, slices: Sequence[Piece]) -> list[Tensor]:
        """Computes the slices; their images must be encoded.

        Returns:
            Of each slice float32 logits (tokens after which one is chosen, V): after its newest known token and each
            draft if it ends with the newest, none if it does not.
        """
        stepped = self._step(slices)
        if stepped is not None:
            return stepped
        order = sorted(range(len(slices)), key=lambda i: (len(slices[i].ids) > 1, slices[i].start))
        ordered = [slices[i] for i in order]
        device = self.model.device
        ids = [token for piece in ordered for token in piece.ids]
        positions = [place for piece in ordered for place in range(piece.start, piece.start + len(piece.ids))]
        segments = [Segment(piece.answer.blocks, piece.start, len(piece.ids)) for piece in ordered]
        hidden_1PD = self.model(
            uploaded([ids], device),
            positions_BT=uploaded([positions], device),
            seen=self._seen(ordered),
            cache=self.cache.pass_over(segments),
        )
        chosen: list[int] = []
        counts: list[int] = []
        at = 0
        for piece in ordered:
            at += len(piece.ids)
            counts.append(1 + piece.drafts if piece.chooses else 0)
            chosen += range(at - counts[-1], at)
        if not chosen:
            return [torch.empty(0)] * len(slices)
        logits_RV = self.model.logits(hidden_1PD[0, uploaded(chosen, hidden_1PD.device)]).float()
        parts = dict(zip(order, torch.split(logits_RV, counts), strict=True))
        return [parts[i] for i in range(len(slices))]

    def _step(self, slices: Sequence[Piece]) -> list[Tensor] | None:
        """As `run`, if every slice is one token that chooses the next and sees no image; None if not."""
        if self.graphs is None or any(len(piece.ids) > 1 or not piece.chooses or self.needed(piece) for piece in slices):
            return None
        self._stacked = None  # the last images looked at need not be kept
        segments = [Segment(piece.answer.blocks, piece.start, 1) for piece in slices]
        logits_RV = self.graphs.run([piece.ids[0] for piece in slices], segments)
        return None if logits_RV is None else list(torch.split(logits_RV, 1))

    def _seen(self, ordered: Sequence[Piece]) -> Sight | None:
        per_image = self.model.sources_per_image
        stack: list[Picture] = []
        places: dict[int, int] = {}
        sources: list[int] = []
        for piece in ordered:
            source = piece.answer.state.source
            for drawn in source.of(piece.start, len(piece.ids)):
                if drawn < 0:
                    sources.append(-1)
                    continue
                picture = source.pictures[drawn // per_image]
                if id(picture) not in places:
                    places[id(picture)] = len(stack)
                    stack.append(picture)
                sources.append(places[id(picture)] * per_image + drawn % per_image)
        if not stack:
            self._stacked = None
            return None
        if self._stacked is None or self._stacked[0] != stack:
            self._stacked = (stack, side_by_side(stack))
        return self.model.sight(self._stacked[1], torch.tensor([sources]))
