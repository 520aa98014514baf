"""The two models of the reference's names: their inputs, `forward` and what it returns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from idefics.errors import InputError, OptionError
from idefics.hf.configuration import Idefics2Config, IdeficsConfig
from idefics.hf.outputs import CausalLMOutput
from idefics.hf.pretrained import PretrainedModel, output
from idefics.inputs import ModelInputs
from idefics.inputs.padded import images_among_tokens, images_apart, unpad_images
from idefics.model.base import VisionLanguageModel
from idefics.model.logits import prompt_logits
from idefics.model.loss import labels_loss

__all__ = ["Idefics2ForConditionalGeneration", "IdeficsForVisionText2Text"]


class Idefics2ForConditionalGeneration(PretrainedModel):
    """An Idefics2; see `PretrainedModel`."""

    config_class = Idefics2Config
    image_inputs = ("pixel_values", "pixel_attention_mask")

    def get_image_features(self, pixel_values: Tensor, pixel_attention_mask: Tensor | None = None) -> Tensor:
        """Latents (images, latents, hidden) of padded images (B, N, C, H, W)."""
        return self.model.encode_images(unpad_images(pixel_values, pixel_attention_mask)[0])

    def inputs(self, input_ids: Tensor, attention_mask: Tensor | None = None, **images: Tensor | None) -> ModelInputs:
        """The engine's inputs; `images` are `pixel_values` and `pixel_attention_mask`."""
        self._check_names(images)
        return images_among_tokens(input_ids, attention_mask, **images)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        image_hidden_states: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,  # noqa: ARG002 (the reference's; see below)
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits of every position, and the loss of the labels.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 for padding on either side.
            position_ids: (B, T); None counts the tokens that are not padding.
            pixel_values: (B, N, C, H, W), padded with zeros.
            pixel_attention_mask: (B, N, H, W).
            image_hidden_states: latents of the images instead of their pixels, as an earlier call returned them.
            labels: (B, T) ids to predict (shifted here); -100 and the image token are not counted, nor is padding.
            use_cache: has no effect: `generate` keeps a cache of its own, and no call here takes one.
            return_dict: False returns a tuple of what there is.
            options: of the reference, where they ask for nothing (`output_attentions=False`, `past_key_values=None`, ...).

        Raises:
            InputError: image tokens and images differ in number, row by row.
        """
        self._check_options(options)
        latents = image_hidden_states
        if latents is not None and pixel_values is not None:
            raise OptionError("pixel_values and image_hidden_states are the same images twice; give one")
        inputs = self.inputs(input_ids, attention_mask, pixel_values=pixel_values, pixel_attention_mask=pixel_attention_mask)
        if latents is None:
            self.model.check(inputs)
            latents = self.model.encode_images(inputs.images_CHW) if inputs.images_CHW else None
        else:
            VisionLanguageModel.check(self.model, inputs)  # ids alone: there are no images to be counted
            _check_latents(int((self.model.sources(inputs) >= 0).sum()), latents)
        logits = prompt_logits(self.model, inputs, latents_NLD=latents, positions_BT=position_ids)
        loss = None
        if labels is not None:
            _check_labels(labels, input_ids)
            image_token = Idefics2Config.of(self.model.config).image_token_id
            loss = labels_loss(logits, labels, inputs.attention_mask_BT, ignored=image_token)
        return output(loss=loss, logits=logits, image_hidden_states=latents, return_dict=return_dict)


class IdeficsForVisionText2Text(PretrainedModel):
    """An IDEFICS, the first generation; see `PretrainedModel`."""

    config_class = IdeficsConfig
    image_inputs = ("pixel_values", "image_attention_mask")
    input_options = ("interpolate_pos_encoding",)

    def inputs(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        interpolate_pos_encoding: bool = False,
        **images: Tensor | None,
    ) -> ModelInputs:
        """The engine's inputs; `images` are `pixel_values` and `image_attention_mask`.

        With `interpolate_pos_encoding` images may have any size, such as a processor with another `image_size` makes.
        """
        self._check_names(images)
        return images_apart(input_ids, attention_mask, **images, interpolated=interpolate_pos_encoding)[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,  # noqa: ARG002 (the reference's; see below)
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **options: Any,
    ) -> CausalLMOutput | tuple[Tensor, ...]:
        """Logits of every position, and the loss of the labels.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 for padding on either side.
            position_ids: (B, T); None counts the tokens that are not padding.
            pixel_values: (B, N, C, S, S); images that no token sees are not looked at.
            image_attention_mask: (B, T, N), 1 where a token sees an image, at most one per token.
            labels: (B, T) ids to predict (shifted here); -100 is not counted, nor is padding.
            use_cache: has no effect: `generate` keeps a cache of its own, and no call here takes one.
            return_dict: False returns a tuple of what there is.
            interpolate_pos_encoding: take images of another size than the tower was made for, such as a processor with
                another `image_size` makes, by positions between those of its table.
            options: of the reference, where they ask for nothing (`output_attentions=False`, `past_key_values=None`, ...).

        Returns:
            `image_hidden_states` are (B, N, L, F): latents, or all features without resampler; zero for images that no
            token sees.

        Raises:
            InputError: shapes do not agree, or a token sees several images.
        """
        self._check_options(options)
        inputs, used_BN = images_apart(
            input_ids,
            attention_mask,
            pixel_values=pixel_values,
            image_attention_mask=image_attention_mask,
            interpolated=interpolate_pos_encoding,
        )
        self.model.check(inputs)
        latents = self.model.encode_images(inputs.images_CHW) if inputs.images_CHW else None
        logits = prompt_logits(self.model, inputs, latents_NLD=latents, positions_BT=position_ids)
        loss = None
        if labels is not None:
            _check_labels(labels, input_ids)
            loss = labels_loss(logits, labels, inputs.attention_mask_BT)
        states = None
        if used_BN is not None:
            size = (*used_BN.shape, self.model.config.latents, self.model.config.vision_config.hidden_size)
            states = torch.zeros(size, dtype=self.dtype, device=used_BN.device)
            if latents is not None:
                states[used_BN] = latents.to(used_BN.device)
        return output(loss=loss, logits=logits, image_hidden_states=states, return_dict=return_dict)


def _check_labels(labels_BT: Tensor, ids_BT: Tensor) -> None:
    """Refuses labels that are not one for each token."""
    if labels_BT.shape != ids_BT.shape:
        raise InputError(
            f"labels are {tuple(labels_BT.shape)}, input_ids {tuple(ids_BT.shape)}: each token has one, -100 for none"
        )


def _check_latents(places: int, latents_NLD: Tensor) -> None:
    """Refuses latents that are not one for each image token."""
    if latents_NLD.ndim != 3:
        raise InputError(f"image_hidden_states must be (images, latents, hidden), not {tuple(latents_NLD.shape)}")
    images, latents, _ = latents_NLD.shape
    if places != images * latents:
        raise InputError(
            f"the prompts hold {places} image token(s) but image_hidden_states of {images} image(s) of {latents} latents need "
            f"{images * latents}; give those of exactly these prompts' images"
        )
