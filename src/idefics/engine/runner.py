"""From what the scheduler planned to logits: one pass over the packed new tokens of all answers.

Letters: P packed tokens, R tokens after which a next one is chosen, D hidden size, V vocabulary, N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from idefics.engine.graphs import DecodeGraphs, graphs_fit
from idefics.engine.image_cache import Encoded, ImageCache
from idefics.engine.limits import Limits, cache_blocks
from idefics.engine.paged_cache import PagedKVCache, Segment
from idefics.engine.sequences import Slice
from idefics.engine.upload import uploaded
from idefics.errors import NumericsError
from idefics.inputs import Levels, ModelInputs, image_digest
from idefics.model.base import VisionLanguageModel
from idefics.model.sight import Sight
from idefics.parallel.launch import agreed_least

__all__ = ["ImageEncoder", "Picture", "Runner", "Source", "pictures"]


@dataclass(eq=False)
class Picture:
    """One image of a request, its digest, and what the model makes of it once it is needed, instead of the image."""

    image: Tensor | Levels | None
    digest: bytes
    encoded: Encoded | None = None

    def pixels(self) -> Tensor | Levels:
        """What is to be encoded."""
        assert self.image is not None, "an image that is encoded already"
        return self.image

    def keep(self, encoded: Encoded) -> None:
        """Takes what the model made of it, as long as the request lasts, whatever is kept for others."""
        self.encoded, self.image = encoded, None


@dataclass(frozen=True, eq=False)
class Source:
    """What a request's tokens draw on.

    Attributes:
        pictures: the request's images.
        drawn: of each prompt token the source, as `VisionLanguageModel.sources` counts them.
        remains: of every token after the prompt.
    """

    pictures: Sequence[Picture]
    drawn: Sequence[int]
    remains: int

    def of(self, start: int, tokens: int) -> list[int]:
        """Sources of consecutive tokens."""
        prompt = list(self.drawn[start : start + tokens])
        return prompt + [self.remains] * (tokens - len(prompt))


def pictures(inputs: ModelInputs) -> list[Picture]:
    """The images of a prompt; equal ones are one."""
    found: dict[bytes, Picture] = {}
    every = []
    for image in inputs.images_CHW:
        digest = image_digest(image)
        every.append(found.setdefault(digest, Picture(image, digest)))
    return every


class ImageEncoder:
    """A model's eyes, and what they saw last.

    Args:
        model: in eval mode.
        images: encoded ones.
    """

    def __init__(self, model: VisionLanguageModel, images: ImageCache) -> None:
        self.model = model
        self.images = images

    def encoded(self, inputs: ModelInputs) -> Encoded | None:
        """`VisionLanguageModel.project` of prompts' images, each encoded once; None if there are none."""
        shown = pictures(inputs)
        self.encode(shown)
        return _side_by_side(shown) if shown else None

    def encode(self, wanted: Sequence[Picture]) -> None:
        """Makes sure that these images are encoded; those that are not go through the model in groups.

        Raises:
            NumericsError: what one of them encodes to is no number; the good ones of its group are encoded all the same.
        """
        missing: dict[bytes, list[Picture]] = {}
        for picture in wanted:
            known = self.images.get(picture.digest) if picture.encoded is None else None
            if known is not None:
                picture.keep(known)
            if picture.encoded is None:
                missing.setdefault(picture.digest, []).append(picture)
        every = list(missing.items())
        for first, last in self.model.groups([alike[0].pixels() for _, alike in every]):
            self._encode(every[first:last])

    def _encode(self, group: Sequence[tuple[bytes, list[Picture]]]) -> None:
        """Encodes images that go through the model together, by digest."""
        latents_NLD = self.model.encode_images([alike[0].pixels() for _, alike in group])
        # Of the latents, which are the same in all processes of a divided model; a GPU is waited for once.
        good = latents_NLD.isfinite().flatten(1).all(1).tolist()
        projected = self.model.project(latents_NLD)
        for index, (digest, alike) in enumerate(group):
            if not good[index]:
                continue
            # Copies: a view would keep the whole group alive as long as any of its images.
            encoded = tuple(part[index : index + 1].clone() for part in projected)
            self.images.put(digest, encoded)
            for picture in alike:
                picture.keep(encoded)
        if not all(good):
            raise NumericsError(
                f"{good.count(False)} image(s) of {len(good)} encode to NaN or infinite values: their pixels or the weights "
                "hold such values, or the dtype overflows; `idefics verify` tells which"
            )


class Runner(ImageEncoder):
    """A model and its cache.

    Args:
        model: in eval mode.
        limits: what to make room for.
        images: encoded ones; None makes room for `limits.image_bytes` of them.

    Attributes:
        cache: keys and values of all sequences.
        blocks: of it.
        graphs: steps of one token per answer, with static shapes; None where there are none.
    """

    def __init__(self, model: VisionLanguageModel, limits: Limits, images: ImageCache | None = None) -> None:
        super().__init__(model, ImageCache(limits.image_bytes) if images is None else images)
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

    def needed(self, piece: Slice) -> list[Picture]:
        """The images that a slice's tokens draw on."""
        source: Source = piece.answer.state.source
        per_image = self.model.sources_per_image
        used = {drawn // per_image for drawn in source.of(piece.start, len(piece.ids)) if drawn >= 0}
        return [source.pictures[image] for image in sorted(used)]

    def lacking(self, piece: Slice) -> Iterator[tuple[int, Picture]]:
        """The images of a slice that are not encoded yet, and the place of the first of its tokens that draws on each."""
        source: Source = piece.answer.state.source
        met: set[int] = set()
        for place, drawn in enumerate(source.of(piece.start, len(piece.ids))):
            image = drawn // self.model.sources_per_image
            if drawn < 0 or image in met:
                continue
            met.add(image)
            picture = source.pictures[image]
            if picture.encoded is None and picture.digest not in self.images:
                yield place, picture

    def run(self, slices: Sequence[Slice]) -> list[Tensor]:
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

    def _step(self, slices: Sequence[Slice]) -> list[Tensor] | None:
        """As `run`, if every slice is one token that chooses the next and sees no image; None if not."""
        if self.graphs is None or any(len(piece.ids) > 1 or not piece.chooses or self.needed(piece) for piece in slices):
            return None
        self._stacked = None  # the last images looked at need not be kept
        segments = [Segment(piece.answer.blocks, piece.start, 1) for piece in slices]
        logits_RV = self.graphs.run([piece.ids[0] for piece in slices], segments)
        return None if logits_RV is None else list(torch.split(logits_RV, 1))

    def _seen(self, ordered: Sequence[Slice]) -> Sight | None:
        per_image = self.model.sources_per_image
        stack: list[Picture] = []
        places: dict[int, int] = {}
        sources: list[int] = []
        for piece in ordered:
            source: Source = piece.answer.state.source
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
            self._stacked = (stack, _side_by_side(stack))
        return self.model.sight(self._stacked[1], torch.tensor([sources]))


def _side_by_side(shown: Sequence[Picture]) -> Encoded:
    """Encoded images as one."""
    parts = zip(*(picture.encoded for picture in shown if picture.encoded is not None), strict=True)
    return tuple(part[0] if len(part) == 1 else torch.cat(part) for part in parts)
