"""IDEFICS (arXiv 2306.16527), the first generation: a LLaMA decoder that looks at images through gated cross-attention.

Letters: B rows, T new tokens, S all tokens, N images, L latents, F tower's width, D decoder's width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import cast

import torch
from torch import Tensor, nn

from idefics.config import Idefics1Config
from idefics.errors import InputError
from idefics.inputs import Levels, ModelInputs, pixels_of
from idefics.model.base import VisionLanguageModel
from idefics.model.cache import KVCache
from idefics.model.clip import ClipTower
from idefics.model.decoder import Decoder
from idefics.model.flamingo_resampler import FlamingoResampler
from idefics.model.gated_cross_attention import Crossed, GatedCrossAttention, View, route
from idefics.model.layers.attention import Backend
from idefics.model.layers.decoupled import DecoupledEmbedding, DecoupledLinear
from idefics.model.sight import Sight
from idefics.model.vision_encoder import check_shapes

__all__ = ["Idefics1"]


class GatedDecoder(Decoder):
    """A decoder with gated cross-attention blocks before every `cross_layer_interval`-th layer."""

    embed_tokens: DecoupledEmbedding

    def __init__(self, config: Idefics1Config, backend: Backend) -> None:
        super().__init__(config.text_config, backend)
        text, added = config.text_config, config.additional_vocab_size
        self.embed_tokens = DecoupledEmbedding(text.vocab_size - added, added, text.hidden_size)
        self.gated_cross_attn_layers = nn.ModuleList(GatedCrossAttention(config, backend) for _ in range(config.cross_layers))
        self.interval = config.cross_layer_interval

    def in_order(self) -> Iterator[tuple[str, nn.Module]]:
        """Parts that are computed one after the other, by name."""
        for name, part in super().in_order():
            kind, _, index = name.partition(".")
            if kind == "layers" and int(index) % self.interval == 0:
                block = int(index) // self.interval
                yield f"gated_cross_attn_layers.{block}", self.gated_cross_attn_layers[block]
            yield name, part

    def forward(
        self,
        x_BTD: Tensor,
        *,
        positions_BT: Tensor,
        key_mask_BS: Tensor | None,
        cache: KVCache | None,
        sight: Crossed | None = None,
    ) -> Tensor:
        """As `Decoder.forward`; `sight` is what the new tokens can see of their images."""
        views: Sequence[View | None] = [None] * len(self.gated_cross_attn_layers)
        if sight is not None:
            routes = route(sight.image_BT.cpu().expand(x_BTD.shape[:2]), images=len(sight.keys[0])).to(x_BTD.device)
            views = [View(k, v, routes) for k, v in zip(sight.keys, sight.values, strict=True)]

        def look(index: int, x_BTD: Tensor) -> Tensor:
            block, rest = divmod(index, self.interval)
            return x_BTD if rest else self.gated_cross_attn_layers[block](x_BTD, views[block])

        return self.run(x_BTD, positions_BT=positions_BT, key_mask_BS=key_mask_BS, cache=cache, before=look)


class Idefics1(VisionLanguageModel):
    """The whole model. Submodules bear the published names, under `text_model` where those stand at the top.

    Args:
        config: sizes.
        backend: attention implementation, see `model/layers/attention.py`.
    """

    config: Idefics1Config
    text_model: GatedDecoder
    vision_model: ClipTower
    lm_head: DecoupledLinear

    def __init__(self, config: Idefics1Config, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        text, added = config.text_config, config.additional_vocab_size
        self.vision_model = ClipTower(config.vision_config, backend)
        resampler = FlamingoResampler(config.vision_config, config.perceiver_config, backend) if config.use_resampler else None
        self.perceiver_resampler = resampler
        self.text_model = GatedDecoder(config, backend)
        self.lm_head = DecoupledLinear(text.hidden_size, text.vocab_size - added, added)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.text_model.embed_tokens.weight
            if self.lm_head.additional_fc is not None and self.text_model.embed_tokens.additional_embedding is not None:
                self.lm_head.additional_fc.weight = self.text_model.embed_tokens.additional_embedding.weight

    def check(self, inputs: ModelInputs) -> None:
        """Refuses prompts that look at images they do not have or have images they cannot see, and ids that do not exist.

        Raises:
            InputError: the row and both numbers are named, or the image and its shape.
        """
        if not inputs.input_ids_BT.shape[1]:
            raise InputError("the prompts are empty")
        check_shapes(inputs.images_CHW, self.config.vision_config)
        self._check_sizes(inputs)
        images = inputs.images_per_row or (0,) * len(inputs.input_ids_BT)
        if self.config.additional_vocab_size >= 2:  # with fewer there is no image token
            places_BT = (inputs.input_ids_BT == self.config.image_token_id) & inputs.attention_mask_BT.bool()
            for row, (places, count) in enumerate(zip(places_BT.sum(1).tolist(), images, strict=True)):
                if places and not count:
                    raise InputError(
                        f"prompt {row + 1} holds {places} image token(s) but no token sees an image; give its images, "
                        "and the image_attention_mask that the processor makes with them"
                    )
        if inputs.seen_BT is not None:
            for row, (last, count) in enumerate(zip(inputs.seen_BT.amax(1).tolist(), images, strict=True)):
                if last >= count:
                    raise InputError(
                        f"prompt {row + 1} looks at image {last + 1} but has {count} image(s); "
                        "text and images must come from one processor call"
                    )
        elif any(images):
            raise InputError("there are images, but nothing says which token sees which; use this family's processor")
        super().check(inputs)

    def _check_sizes(self, inputs: ModelInputs) -> None:
        side, patch = self.config.vision_config.image_size, self.config.vision_config.patch_size
        for image in inputs.images_CHW:
            height, width = image.shape[-2:]
            if (height, width) == (side, side):
                continue
            what = f"an image of {width}x{height} pixels; this model takes {side}x{side}"
            if not inputs.interpolated:
                raise InputError(
                    f"{what}, and others with image_size= at idefics.load or interpolate_pos_encoding=True in a call"
                )
            if min(height, width) < patch:
                raise InputError(f"{what}, and no image smaller than a patch of {patch}x{patch}")
            if self.perceiver_resampler is None:
                raise InputError(
                    f"{what} and no others: without a resampler its decoder looks at {self.config.latents} features"
                )

    def encode_images(self, images_CHW: Sequence[Tensor | Levels]) -> Tensor:
        """Encodes images, each alone, to what the decoder looks at: latents (N, L, F), or all features without resampler.

        Args:
            images_CHW: normalised pixels, or their levels, of squares of `image_size`; others are placed by interpolated
                positions (see `check`).

        Raises:
            InputError: there is none.
        """
        if not images_CHW:
            raise InputError("there are no images to encode")
        pieces = [
            features_NPF if self.perceiver_resampler is None else self.perceiver_resampler(features_NPF)
            for features_NPF in self._features(images_CHW)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def image_vectors(self, images_CHW: Sequence[Tensor | Levels]) -> Tensor:
        """The normed class token of each image (N, F)."""
        return torch.cat([self.vision_model.pooled(features_NPF) for features_NPF in self._features(images_CHW)])

    def _features(self, images_CHW: Sequence[Tensor | Levels]) -> Iterator[Tensor]:
        """The tower's features (N, P, F) of as many images together as fit."""
        table = self.vision_model.embeddings.class_embedding
        for first, last in self.groups(images_CHW):
            for _, alike in groupby(images_CHW[first:last], key=lambda image: image.shape):
                yield self.vision_model([pixels_of(image.to(table.device), table.dtype) for image in alike])

    sources_remain = True
    sources_per_image = 1

    def sources(self, inputs: ModelInputs) -> Tensor:
        """The images that the tokens see."""
        if inputs.seen_BT is None:
            return torch.full_like(inputs.input_ids_BT, -1)
        return global_images(inputs.seen_BT, inputs.images_per_row)

    def project(self, latents_NLD: Tensor) -> tuple[Tensor, ...]:
        """Keys, then values, of every gated block, (N, L, H, K) each."""
        blocks = cast("Iterable[GatedCrossAttention]", self.text_model.gated_cross_attn_layers)
        keys, values = zip(*(block.cross_attn.project(latents_NLD) for block in blocks), strict=True)
        return (*keys, *values)

    def sight(self, projected: tuple[Tensor, ...], source_BT: Tensor) -> Sight | None:
        """The images' keys and values, and who sees which."""
        if not (source_BT >= 0).any():
            return None
        blocks = len(projected) // 2
        return Crossed(keys=projected[:blocks], values=projected[blocks:], image_BT=source_BT)

    def forward(
        self,
        input_ids_BT: Tensor,
        *,
        positions_BT: Tensor,
        seen: Sight | None = None,
        key_mask_BS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Runs new tokens and returns hidden states (B, T, D); see the base class."""
        assert seen is None or isinstance(seen, Crossed), "the sight of another family"
        x_BTD = self.text_model.embed_tokens(input_ids_BT)
        hidden_BTD: Tensor = self.text_model(x_BTD, positions_BT=positions_BT, key_mask_BS=key_mask_BS, cache=cache, sight=seen)
        return hidden_BTD


def global_images(seen_BT: Tensor, images_per_row: Sequence[int]) -> Tensor:
    """Images counted within each row to images counted over the batch; -1 stays.

    >>> global_images(torch.tensor([[-1, 0, 1], [-1, -1, 0]]), (2, 1)).tolist()
    [[-1, 0, 1], [-1, -1, 2]]
    """
    before = torch.tensor([0, *images_per_row][: len(seen_BT)], device=seen_BT.device).cumsum(0)[:, None]
    return torch.where(seen_BT >= 0, seen_BT + before, seen_BT)
