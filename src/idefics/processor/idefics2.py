"""Idefics2's processor: texts and images in, model inputs out.

Every `<image>` of a text becomes `<fake_token_around_image>`, `image_seq_len` times `<image>`, and the fake token
again; with splitting that block repeats five times. Neighbouring fake tokens collapse to one. The number of sub-images
and of blocks come from the same call options, so pixels and tokens cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from idefics.config import read_json, write_json
from idefics.errors import ConfigError, ImageCountError, InputError, OptionError, TemplateError
from idefics.inputs import ModelInputs
from idefics.processor.batch import BatchFeature
from idefics.processor.fetch import load_image
from idefics.processor.image import ImageProcessor, Pixels
from idefics.processor.messages import fill_images, normalise
from idefics.processor.rows import arrange, unswap
from idefics.processor.sizes import sub_images
from idefics.processor.template import IDEFICS2_TEMPLATE, find_template, render
from idefics.processor.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["END_OF_UTTERANCE", "FAKE_TOKEN", "IMAGE_TOKEN", "Idefics2Processor"]

FAKE_TOKEN = "<fake_token_around_image>"
IMAGE_TOKEN = "<image>"
END_OF_UTTERANCE = "<end_of_utterance>"


class Idefics2Processor:
    """Texts and images to the inputs of an Idefics2 model, and ids back to text.

    Args:
        image_processor: how images become pixels.
        tokenizer: must know `<image>` and `<fake_token_around_image>`; nothing is added to it.
        image_seq_len: latents per (sub-)image, the model's `perceiver_config.resampler_n_latents`.
        chat_template: jinja source; None takes Idefics2's own if the tokenizer has `<end_of_utterance>`, else none.

    Attributes:
        image_token: `<image>`; `image_token_id` is its id.
        fake_image_token: `<fake_token_around_image>`; `fake_image_token_id` is its id.
        end_of_utterance_id: None for base checkpoints, whose embeddings have no such row.

    Raises:
        ConfigError: the tokenizer lacks a token.
    """

    image_token = IMAGE_TOKEN
    fake_image_token = FAKE_TOKEN

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Tokenizer,
        image_seq_len: int = 64,
        chat_template: str | None = None,
    ) -> None:
        if isinstance(image_seq_len, bool) or not isinstance(image_seq_len, int) or image_seq_len < 1:
            raise OptionError(f"image_seq_len = {image_seq_len!r} must be a positive whole number")
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_seq_len = image_seq_len
        self.image_token_id = self._required_id(IMAGE_TOKEN)
        self.fake_image_token_id = self._required_id(FAKE_TOKEN)
        self.end_of_utterance_id = tokenizer.backend.token_to_id(END_OF_UTTERANCE)
        if chat_template is None and self.end_of_utterance_id is not None:
            chat_template = IDEFICS2_TEMPLATE
        self.chat_template = chat_template

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """Reads a checkpoint folder of either era.

        Args:
            folder: with `tokenizer.json` and its companions, `preprocessor_config.json` and/or `processor_config.json`.
            overrides: any field of `ImageProcessor`, and `image_seq_len`, `chat_template`, `padding_side`.

        Raises:
            CheckpointNotFound: a file is missing.
            ConfigError: a file cannot be honoured.
            OptionError: an override is unknown or unusable.
        """
        own = {name: overrides.pop(name, None) for name in ("image_seq_len", "chat_template", "padding_side")}
        images = ImageProcessor.from_folder(folder, **overrides)
        path = folder / "processor_config.json"
        config = read_json(path) if path.is_file() else {}
        seq_len = own["image_seq_len"] if own["image_seq_len"] is not None else config.get("image_seq_len")
        return cls(
            images,
            Tokenizer.from_folder(folder, padding_side=own["padding_side"]),
            image_seq_len=64 if seq_len is None else seq_len,
            chat_template=own["chat_template"] if own["chat_template"] is not None else find_template(folder),
        )

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the files of 2024, which `from_folder` and every transformers since 4.40 read."""
        folder = Path(folder)
        self.tokenizer.config.setdefault("processor_class", "Idefics2Processor")
        self.tokenizer.save(folder)
        # Not nested as transformers 5 writes it: 4.40 refuses that, and 5 reads this.
        write_json(folder / "preprocessor_config.json", self.image_processor.to_dict())
        config = {"image_seq_len": self.image_seq_len, "processor_class": "Idefics2Processor"}
        write_json(folder / "processor_config.json", config)
        for stale in ("chat_template.jinja", "chat_template.json"):  # an older template would be read before ours
            (folder / stale).unlink(missing_ok=True)
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
            path = folder / "tokenizer_config.json"
            write_json(path, {**read_json(path), "chat_template": self.chat_template})

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
        size: Mapping[str, int] | None = None,
        do_image_splitting: bool | None = None,
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
            size: of images, for this call; pixels only change, the tokens of an image do not depend on it.
            do_image_splitting: for this call, pixels and tokens alike.

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
        worker = self.image_processor.with_options(size=size, do_image_splitting=do_image_splitting)
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
        size: Mapping[str, int] | None = None,
        do_image_splitting: bool | None = None,
        padding_side: str = "left",
    ) -> ModelInputs:
        """The engine's inputs: every image in its own size, nothing padded but the ids.

        Args:
            prompts: texts with one `<image>` per image.
            images: a list per prompt.
            size: as in `__call__`.
            do_image_splitting: as in `__call__`.
            padding_side: of the ids.

        Raises:
            ImageCountError: a prompt's placeholders and images differ in number.
        """
        import torch

        texts, rows = arrange(prompts, images, placeholder=IMAGE_TOKEN)
        if texts is None or rows is None:
            raise InputError("prompts must be a list of texts, not None")
        worker = self.image_processor.with_options(size=size, do_image_splitting=do_image_splitting)
        ids = [self.tokenizer.encode(self._expanded(text, worker)) for text in texts]
        batch = self.tokenizer.pad(ids, padding_side=padding_side, return_tensors="pt")
        pixels = [self._pixels(row, worker) for row in rows]
        return ModelInputs(
            input_ids_BT=batch["input_ids"],
            attention_mask_BT=batch["attention_mask"],
            images_CHW=tuple(torch.from_numpy(image_CHW) for row in pixels for image_CHW in row),
            images_per_row=tuple(len(row) for row in pixels),
        )

    def expand(
        self, prompt: str, *, images_n: int | None = None, do_image_splitting: bool | None = None, where: str = "the prompt"
    ) -> str:
        """The prompt with every `<image>` spelled out in the tokens the model reads.

        Args:
            prompt: any text.
            images_n: images that come with it; None leaves that unchecked.
            do_image_splitting: None is the image processor's.
            where: how an error names the prompt.

        Raises:
            ImageCountError: `images_n` differs from the placeholders.
        """
        placeholders = prompt.count(IMAGE_TOKEN)
        if images_n is not None and images_n != placeholders:
            raise ImageCountError(placeholders=placeholders, images=images_n, where=where)
        return self._expanded(prompt, self.image_processor.with_options(do_image_splitting=do_image_splitting))

    def apply_chat_template(
        self,
        messages: Any,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        chat_template: str | None = None,
        images: Any = None,
        **options: Any,
    ) -> Any:
        """The prompt of a chat, or of each of a list of chats; with `tokenize` its ids or whole inputs.

        Args:
            messages: a list of messages or a list of such lists; image parts may carry their image.
            add_generation_prompt: end with `Assistant:`.
            tokenize: return ids instead of text.
            return_dict: with `tokenize`, return everything that `__call__` returns.
            return_tensors: with `tokenize`.
            chat_template: instead of the checkpoint's.
            images: with `tokenize`, for image parts that carry none, in reading order (all chats' in one list).
            options: further options of `__call__`, with `tokenize`.

        Raises:
            TemplateError: the messages or the template are unusable, or there is no template.
        """
        several = isinstance(messages, list | tuple) and bool(messages) and isinstance(messages[0], list | tuple)
        chats = [normalise(chat) for chat in (messages if several else [messages])]
        template = chat_template if chat_template is not None else self.chat_template
        if template is None:
            raise TemplateError(
                "this checkpoint has no chat template (a base model?); write the prompt yourself or pass chat_template"
            )
        named = {name: self.tokenizer.special_tokens.get(name, "") for name in ("bos_token", "eos_token")}
        prompts = [render(template, chat, add_generation_prompt=add_generation_prompt, **named) for chat, _ in chats]
        if not tokenize:
            unused = sorted(options) + [
                name for name, value in (("images", images), ("return_tensors", return_tensors)) if value is not None
            ]
            if return_dict or unused:
                raise OptionError(f"{', '.join(unused) or 'return_dict'}: has no effect without tokenize=True")
            return prompts if several else prompts[0]
        given = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
        filled = iter(fill_images([image for _, carried in chats for image in carried], given))
        rows = [[next(filled) for _ in carried] for _, carried in chats]
        bos = self.tokenizer.bos_token
        options.setdefault("add_special_tokens", not (bos and prompts[0].startswith(bos)))
        batch = self(prompts, rows, return_tensors=return_tensors, **options)
        if return_dict:
            return batch
        return batch["input_ids"] if several or return_tensors is not None else batch["input_ids"][0]

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of ids; see `Tokenizer.decode`."""
        return self.tokenizer.decode(token_ids, skip_special_tokens, clean_up_tokenization_spaces)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The text of each row of ids."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens, clean_up_tokenization_spaces)

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
        loaded: list[Image.Image] = [load_image(image) for image in row]
        return worker.pixels(loaded)

    def _required_id(self, token: str) -> int:
        found = self.tokenizer.backend.token_to_id(token)
        if found is None:
            raise ConfigError(f"the tokenizer has no {token!r}; it is not that of an Idefics2 checkpoint")
        return int(found)
