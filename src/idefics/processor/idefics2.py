"""Idefics2's processor: texts and images in, model inputs out.

Every `<image>` of a text becomes `<fake_token_around_image>`, `image_seq_len` times `<image>`, and the fake token
again; with splitting that block repeats five times. Neighbouring fake tokens collapse to one. The number of sub-images
and of blocks come from the same call options, so pixels and tokens cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.config import Idefics2Config
from idefics.config.keys import Keys
from idefics.errors import ConfigError, InputError, OptionError
from idefics.inputs import ModelInputs
from idefics.processor.base import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN, Processor
from idefics.processor.batch import BatchFeature
from idefics.processor.call_options import check_left_over, plain
from idefics.processor.fetch import upright_image
from idefics.processor.image import ImageProcessor, Pixels
from idefics.processor.rows import arrange, unswap
from idefics.processor.settings import processor_settings_of
from idefics.processor.sizes import sub_images
from idefics.processor.template import find_template
from idefics.processor.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

    from idefics.config import Config

__all__ = ["END_OF_UTTERANCE", "FAKE_TOKEN", "IMAGE_TOKEN", "Idefics2Processor"]

MOST_LATENTS = 10_000
"""Of one (sub-)image: twice its patches. A prompt is written with so many tokens, and a file may say a billion."""


class Idefics2Processor(Processor):
    """Texts and images to the inputs of an Idefics2 model, and ids back to text.

    Args:
        image_processor: how images become pixels.
        tokenizer: see `Processor`.
        image_seq_len: latents per (sub-)image, the model's `perceiver_config.resampler_n_latents`.
        chat_template: see `Processor`.

    Raises:
        ConfigError: the tokenizer lacks a token.
        OptionError: `image_seq_len` is no whole number from 1 to `MOST_LATENTS`.
    """

    published_name = "Idefics2Processor"
    image_processor: ImageProcessor
    images_class: ClassVar[type[ImageProcessor]] = ImageProcessor

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Tokenizer,
        image_seq_len: int = 64,
        chat_template: str | None = None,
    ) -> None:
        image_seq_len = plain(image_seq_len)
        if isinstance(image_seq_len, bool) or not isinstance(image_seq_len, int) or not 1 <= image_seq_len <= MOST_LATENTS:
            raise OptionError(f"image_seq_len = {image_seq_len!r} must be a whole number from 1 to {MOST_LATENTS}")
        super().__init__(image_processor, tokenizer, chat_template)
        self.image_seq_len = image_seq_len

    @classmethod
    def from_folder(cls, folder: Path, *, keys: Keys | None = None, **overrides: Any) -> Self:
        """Reads a checkpoint folder of either era.

        Args:
            folder: with `tokenizer.json` and its companions, `preprocessor_config.json` and/or `processor_config.json`.
            keys: lets unknown ones of the image settings pass, or does not; None does not.
            overrides: any field of `ImageProcessor`, and `image_seq_len`, `chat_template`, `padding_side`.

        Raises:
            CheckpointNotFound: a file is missing.
            ConfigError: a file cannot be honoured, or is another family's.
            OptionError: an override is unknown or unusable.
        """
        own = {name: overrides.pop(name, None) for name in ("image_seq_len", "chat_template", "padding_side")}
        images = cls.images_class.from_folder(folder, keys=keys, **overrides)
        seq_len = own["image_seq_len"]
        if seq_len is None:
            seq_len = processor_settings_of(folder, family="Idefics2").get("image_seq_len")
        return cls(
            images,
            Tokenizer.from_folder(folder, padding_side=own["padding_side"]),
            image_seq_len=64 if seq_len is None else seq_len,
            chat_template=own["chat_template"] if own["chat_template"] is not None else find_template(folder),
        )

    @classmethod
    def for_config(cls, config: Config, tokenizer: Tokenizer) -> Self:
        """A processor with the settings that models of this size are published with.

        Raises:
            ConfigError: the config is of another family.
        """
        return cls(cls.images_for(config), tokenizer, image_seq_len=cls.tokens_of(config))

    @classmethod
    def images_for(cls, config: Config) -> ImageProcessor:
        """The image settings that models of this size are published with.

        At 980 pixels those of Idefics2-8B: edges of 378 to 980, split. Otherwise the longest edge is the side of the
        position table, the shortest half of it, not split (`idefics2-nano`: 84 to 168).
        """
        vision = config.vision_config
        longest = vision.image_size
        published = longest == 980
        shortest = 378 if published else max(longest // 2, vision.patch_size)
        return ImageProcessor(size={"shortest_edge": shortest, "longest_edge": longest}, do_image_splitting=published)

    @classmethod
    def tokens_of(cls, config: Config) -> int:
        """Image tokens that one sub-image fills in prompts of such a model: its resampler's latents.

        Raises:
            ConfigError: the config is of another family.
        """
        if not isinstance(config, Idefics2Config):
            raise ConfigError(f"a config of model_type {config.model_type!r} is none for {cls.published_name}")
        return config.perceiver_config.resampler_n_latents

    @property
    def tokens_per_sub_image(self) -> int:
        """Image tokens that one sub-image fills: `image_seq_len`."""
        return self.image_seq_len

    def with_small_images(self, config: Config) -> Self:
        """The same processor for images of a few patches, for tests of models of any size."""
        patch, side = config.vision_config.patch_size, config.vision_config.patches_per_side
        # Half a patch too much: real images are no multiples of a patch either.
        size = {"shortest_edge": min(3, side) * patch, "longest_edge": min(side * patch, 7 * patch + patch // 2)}
        return self._with_images(self.image_processor.with_options(size=size))

    @property
    def model_input_names(self) -> list[str]:
        """What calls return."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]

    def to_dict(self) -> dict[str, Any]:
        """See `Processor`; with the tokens of a sub-image."""
        return {**super().to_dict(), "image_seq_len": self.image_seq_len}

    def save_pretrained(self, folder: Path | str, **options: Any) -> None:
        """Writes the files of 2024, which `from_folder` and every transformers since 4.40 read."""
        check_left_over("save_pretrained", options, there=("folder",))
        self._save(Path(folder), {"image_seq_len": self.image_seq_len})

    def __call__(
        self,
        text: Any = None,
        images: Any = None,
        *,
        padding: bool | str = False,
        truncation: bool | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        return_attention_mask: bool = True,
        **options: Any,
    ) -> BatchFeature:
        """Inputs with padded pixels, as the reference returns them.

        Args:
            text: a text, several, or rows of texts, URLs and images in any order. Positional (images, text), the
                order of transformers 5, is recognised.
            images: one image, a flat list in reading order, or a list per text; anything `load_image` takes.
            padding: False, True or `"longest"`, or `"max_length"`.
            truncation: cut texts to `max_length`; None cuts if `max_length` is given without padding to it. Cutting
                into an image's tokens is refused.
            max_length: in tokens.
            padding_side: `"left"` or `"right"`; None is the tokenizer's.
            add_special_tokens: begin with `<s>`, as the tokenizer's files say.
            return_tensors: `"pt"`, `"np"`, or None for lists of ids and numpy pixels.
            return_attention_mask: False leaves it out.
            options: settings of images for this call: `size` (pixels only change, the tokens of an image do not depend
                on it), `do_image_splitting` (pixels and tokens alike), or any other of the image processor's; and whatever of
                the reference's changes nothing.

        Returns:
            `input_ids` and `attention_mask` (B, T) int64 if there is text; `pixel_values` (B, N, 3, H, W) float32 and
            `pixel_attention_mask` (B, N, H, W) int64 if there is any image.

        Raises:
            ImageCountError: a text's placeholders and images differ in number.
            ImageError: an image cannot be used.
            InputError: texts, images and options do not fit each other.
        """
        text, images = unswap(text, images)
        texts, rows = arrange(text, images, placeholder=IMAGE_TOKEN)
        worker = self.image_processor.with_options(**self._image_options(options))
        out = BatchFeature()
        if texts is not None:
            if truncation is False and max_length is not None and padding != "max_length":
                raise OptionError(f"max_length = {max_length} has no effect with truncation=False and padding={padding!r}")
            cut = truncation if truncation is not None else max_length is not None and padding != "max_length"
            prompts = [self._expanded(one, worker) for one in texts]
            ids = [self._encode(prompt, add_special_tokens, truncation=cut, max_length=max_length) for prompt in prompts]
            out.update(
                self.tokenizer.pad(
                    ids, padding=padding, max_length=max_length, padding_side=padding_side, return_tensors=return_tensors
                )
            )
            if not return_attention_mask:
                del out["attention_mask"]
        out.update(worker.batch([self._pixels(row, worker) for row in rows or ()], return_tensors))
        return out

    def inputs(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Any]],
        *,
        padding_side: str = "left",
    ) -> ModelInputs:
        """The engine's inputs: every image in its own size, nothing padded but the ids.

        Args:
            prompts: texts with one `<image>` per image.
            images: a list per prompt: what `prepare` made, or anything `load_image` takes.
            padding_side: of the ids.

        Raises:
            ImageCountError: a prompt's placeholders and images differ in number.
        """
        texts, rows = arrange(prompts, images, placeholder=IMAGE_TOKEN)
        if texts is None or rows is None:
            raise InputError("prompts must be a list of texts, not None")
        ids = [self.tokenizer.encode(self.expand(text)) for text in texts]
        batch = self.tokenizer.pad(ids, padding_side=padding_side, return_tensors="pt")
        ready = self._prepared(rows)
        return ModelInputs(
            input_ids_BT=batch["input_ids"],
            attention_mask_BT=batch["attention_mask"],
            images_CHW=tuple(part for row in ready for image in row for part in image.parts),
            images_per_row=tuple(len(row) * self._parts_per_image for row in ready),
        )

    def expand(self, prompt: str) -> str:
        """The prompt with every `<image>` spelled out in the tokens the model reads."""
        return self._expanded(prompt, self.image_processor)

    def _chat_batch(self, prompts: list[str], rows: list[list[Any]], **options: Any) -> BatchFeature:
        bos = self.tokenizer.bos_token
        options.setdefault("add_special_tokens", not (bos and prompts[0].startswith(bos)))
        return self(prompts, rows, **options)

    def _expanded(self, prompt: str, worker: ImageProcessor) -> str:
        block = f"{FAKE_TOKEN}{IMAGE_TOKEN * self.image_seq_len}{FAKE_TOKEN}"
        blocks = block * sub_images(do_image_splitting=worker.do_image_splitting)
        return prompt.replace(IMAGE_TOKEN, blocks).replace(FAKE_TOKEN * 2, FAKE_TOKEN)

    def _encode(self, prompt: str, add_special_tokens: bool, *, truncation: bool, max_length: int | None) -> list[int]:
        ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens, truncation=truncation, max_length=max_length)
        if truncation:
            whole = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
            for token_id in (self.image_token_id, self.fake_image_token_id):
                if ids.count(token_id) != whole.count(token_id):
                    raise InputError(
                        f"truncation from {len(whole)} to {len(ids)} tokens would cut into an image, which has "
                        f"{self.image_seq_len} tokens per sub-image; raise max_length or give fewer images"
                    )
        return ids

    def _pixels(self, row: Sequence[Any], worker: ImageProcessor) -> list[Pixels]:
        return worker.pixels([upright_image(image) for image in row])

    def _open_image(self, image: Any) -> Image.Image:
        return upright_image(image)

    @property
    def _parts_per_image(self) -> int:
        return sub_images(do_image_splitting=self.image_processor.do_image_splitting)
