"""Idefics2 (arXiv 2405.02246), whole: images through SigLIP and the connector, merged with text, through the decoder.

Letters: B rows, T new tokens, S all tokens, N images, L latents, D hidden size, V vocabulary, P packed patches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from idefics.config import Idefics2Config
from idefics.errors import InputError
from idefics.inputs import Levels, ModelInputs, pixels_of
from idefics.model.base import VisionLanguageModel
from idefics.model.cache import KVCache
from idefics.model.connector import Connector
from idefics.model.decoder import Decoder
from idefics.model.layers.attention import Backend
from idefics.model.sight import Placed, Sight
from idefics.model.siglip import SiglipTower
from idefics.model.vision_encoder import check_shapes, patchify

__all__ = ["Idefics2"]


class Idefics2(VisionLanguageModel):
    """The whole model. Submodules bear the published names, so parameter names read as in the files.

    Args:
        config: sizes.
        backend: attention implementation, see `model/layers/attention.py`.
    """

    config: Idefics2Config
    vision_model: SiglipTower

    def __init__(self, config: Idefics2Config, *, backend: Backend = "auto") -> None:
        super().__init__()
        self.config = config
        self.vision_model = SiglipTower(config.vision_config, backend)
        self.connector = Connector(config, backend)
        self.text_model = Decoder(config.text_config, backend)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.text_model.embed_tokens.weight

    def encode_images(self, images_CHW: Sequence[Tensor | Levels]) -> Tensor:
        """Encodes images of any sizes, each alone, to latents (N, L, D).

        Images go through the tower in groups (`model/peaks.py`), so that the memory needed does not grow with their number.

        Args:
            images_CHW: normalised pixels or their levels, at least one patch on each side. Sides beyond `image_size`
                share positions.

        Raises:
            InputError: an image is smaller than a patch, or there is none.
        """
        if not images_CHW:
            raise InputError("there are no images to encode")
        images_CHW = [image.to(self.vision_model.post_layernorm.weight.device) for image in images_CHW]
        patch = self.config.vision_config.patch_size
        for image in images_CHW:
            if min(image.shape[-2:]) < patch:
                raise InputError(
                    f"an image of {image.shape[-1]}x{image.shape[-2]} pixels is smaller than a {patch}-pixel patch"
                )
        encoded = [self._encode(images_CHW[first:last]) for first, last in self.groups(images_CHW)]
        return encoded[0] if len(encoded) == 1 else torch.cat(encoded)

    def _encode(self, images_CHW: Sequence[Tensor | Levels]) -> Tensor:
        features_PD, lengths = self._features(images_CHW)
        latents_NLD: Tensor = self.connector(features_PD, lengths)
        return latents_NLD

    def _features(self, images_CHW: Sequence[Tensor | Levels]) -> tuple[Tensor, list[int]]:
        """The tower's packed features (P, F), and how many are each image's."""
        patch = self.config.vision_config.patch_size
        pieces, grids = zip(*(patchify(pixels_of(image, self.dtype), patch=patch) for image in images_CHW), strict=True)
        return self.vision_model(torch.cat(pieces), grids), [h * w for h, w in grids]

    def image_vectors(self, images_CHW: Sequence[Tensor | Levels]) -> Tensor:
        """The mean of each image's features (N, F), one image at a time; sub-images count as images."""
        device = self.vision_model.post_layernorm.weight.device
        return torch.stack([self._features([image.to(device)])[0].mean(0) for image in images_CHW])

    def check(self, inputs: ModelInputs) -> None:
        """Refuses prompts whose image tokens do not match their images, row by row, and ids that do not exist.

        Raises:
            InputError: the row and both numbers are named, or the image and its shape.
        """
        check_shapes(inputs.images_CHW, self.config.vision_config)
        latents = self.config.perceiver_config.resampler_n_latents
        real = inputs.attention_mask_BT.bool()
        places = ((inputs.input_ids_BT == self.config.image_token_id) & real).sum(1).tolist()
        images = inputs.images_per_row or (0,) * len(places)
        for row, (found, count) in enumerate(zip(places, images, strict=True)):
            if found != count * latents:
                raise InputError(
                    f"prompt {row + 1} holds {found} image token(s) but its {count} image(s) of {latents} latents need "
                    f"{count * latents}; text and images must come from one processor call with the same splitting"
                )
        super().check(inputs)

    sources_remain = False

    @property
    def sources_per_image(self) -> int:
        """Every latent is the source of one token."""
        return self.config.perceiver_config.resampler_n_latents

    def sources(self, inputs: ModelInputs) -> Tensor:
        """Image tokens take the latents in order, row after row."""
        places_BT = (inputs.input_ids_BT == self.config.image_token_id) & inputs.attention_mask_BT.bool()
        return torch.where(places_BT, places_BT.flatten().cumsum(0).view_as(places_BT) - 1, -1)

    def project(self, latents_NLD: Tensor) -> tuple[Tensor, ...]:
        """The latents (N, L, D) themselves."""
        return (latents_NLD,)

    def sight(self, projected: tuple[Tensor, ...], source_BT: Tensor) -> Placed | None:
        """The latents that the tokens stand for, and which tokens those are."""
        places_BT = source_BT >= 0
        drawn_X = source_BT[places_BT].to(projected[0].device)
        return Placed(projected[0].flatten(0, 1)[drawn_X], places_BT) if len(drawn_X) else None

    def forward(
        self,
        input_ids_BT: Tensor,
        *,
        positions_BT: Tensor,
        seen: Sight | None = None,
        key_mask_BS: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Runs new tokens, latents among them, and returns hidden states (B, T, D); see the base class."""
        assert seen is None or isinstance(seen, Placed), "the sight of another family"
        x_BTD = self.text_model.embed_tokens(input_ids_BT)
        if seen is not None:
            x_BTD = seen.into(x_BTD)
        hidden_BTD: Tensor = self.text_model(x_BTD, positions_BT=positions_BT, key_mask_BS=key_mask_BS, cache=cache)
        return hidden_BTD
