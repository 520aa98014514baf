"""The processor of the first IDEFICS: prompts that mix texts, URLs and images in, model inputs out.

Every image becomes `<fake_token_around_image><image><fake_token_around_image>`; neighbours share the fake token between
them. Its pixels travel apart from the text, so each token also needs to know which image it sees (`image_mask.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from idefics.config import Idefics1Config
from idefics.config.keys import Keys
from idefics.errors import ConfigError, ImageCountError, InputError, OptionError
from idefics.inputs import ModelInputs
from idefics.processor.base import END_OF_UTTERANCE, FAKE_TOKEN, IMAGE_TOKEN, Processor
from idefics.processor.batch import BatchFeature
from idefics.processor.call_options import check_left_over
from idefics.processor.fetch import open_image
from idefics.processor.image_mask import mask_of, seen_images
from idefics.processor.interleaved import Piece, pieces_apart, pieces_between, pieces_of_text
from idefics.processor.rows import arrange
from idefics.processor.settings import check_options, processor_settings_of
from idefics.processor.square_image import SquareImageProcessor
from idefics.processor.template import find_template
from idefics.processor.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from idefics.config import Config

__all__ = ["IdeficsProcessor"]

_OVERRIDES = ("image_size", "image_mean", "image_std")


class IdeficsProcessor(Processor):
    """Texts and images to the inputs of a model of the first IDEFICS, and ids back to text.

    Args:
        image_processor: how images become squares.
        tokenizer: see `Processor`; must have a `bos_token`, with which all samples of the training began.
        chat_template: see `Processor`.

    Attributes:
        interpolated: whether `inputs` asks the model to interpolate positions for images of another size; see `sized`.

    Raises:
        ConfigError: the tokenizer lacks a token.
    """

    published_name = "IdeficsProcessor"
    tokens_per_sub_image = 1
    image_processor: SquareImageProcessor
    interpolated = False
    images_class: ClassVar[type[SquareImageProcessor]] = SquareImageProcessor

    def __init__(self, image_processor: SquareImageProcessor, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        super().__init__(image_processor, tokenizer, chat_template)
        if tokenizer.bos_token is None:
            raise ConfigError("the tokenizer has no bos_token; this family's prompts begin with one")
        self._bos = tokenizer.bos_token
        # Some files leave it to the tokenizer to begin with <s>, and the models need it whatever the files say.
        self._lead = "" if tokenizer.encode("")[:1] == [tokenizer.bos_token_id] else self._bos

    @classmethod
    def from_folder(cls, folder: Path, *, keys: Keys | None = None, **overrides: Any) -> Self:
        """Reads a checkpoint folder of any era.

        Args:
            folder: with `tokenizer.json` and its companions, `preprocessor_config.json` and/or `processor_config.json`.
            keys: lets unknown ones of the image settings pass, or does not; None does not.
            overrides: `image_size`, `image_mean`, `image_std`, `padding_side`, `chat_template`.

        Raises:
            CheckpointNotFound: a file is missing.
            ConfigError: a file cannot be honoured, or is another family's.
            OptionError: an override is unknown or unusable.
        """
        check_options(overrides, (*_OVERRIDES, "padding_side", "chat_template"), what="processor")
        processor_settings_of(folder, family="Idefics")
        images = cls.images_class.from_folder(folder, keys=keys, **{name: overrides.get(name) for name in _OVERRIDES})
        template = overrides.get("chat_template")
        tokenizer = Tokenizer.from_folder(folder, padding_side=overrides.get("padding_side"))
        return cls(images, tokenizer, chat_template=find_template(folder) if template is None else template)

    @classmethod
    def for_config(cls, config: Config, tokenizer: Tokenizer) -> Self:
        """A processor with the settings that models of this size are published with.

        Raises:
            ConfigError: the config is of another family.
        """
        return cls(cls.images_for(config), tokenizer)

    @classmethod
    def images_for(cls, config: Config) -> SquareImageProcessor:
        """The image settings that models of this size are published with: squares of the tower's side.

        Raises:
            ConfigError: the config is of another family.
        """
        _check_family(config)
        return SquareImageProcessor(image_size=config.vision_config.image_size)

    @classmethod
    def tokens_of(cls, config: Config) -> int:
        """One `<image>` per image, whatever the model's size: its latents are looked at apart from the text.

        Raises:
            ConfigError: the config is of another family.
        """
        _check_family(config)
        return cls.tokens_per_sub_image

    def with_small_images(self, config: Config) -> Self:
        """This very processor: the model takes images of one size only.

        Raises:
            ConfigError: the config is of another family.
        """
        _check_family(config)
        return self

    def sized(self, image_size: int) -> Self:
        """The same processor for images of another side than the model's, for which it interpolates its positions.

        Raises:
            OptionError: the side is no positive whole number.
        """
        other = super().sized(image_size)
        other.interpolated = True
        return other

    @property
    def model_input_names(self) -> list[str]:
        """What calls return."""
        return [*self.tokenizer.model_input_names, "pixel_values", "image_attention_mask"]

    def save_pretrained(self, folder: Path | str, **options: Any) -> None:
        """Writes the files of 2023, which `from_folder` and transformers 4.40 and 5 read."""
        check_left_over("save_pretrained", options, there=("folder",))
        self._save(Path(folder), None)

    def __call__(
        self,
        prompts: Any = None,
        *,
        text: Any = None,
        images: Any = None,
        padding: bool | str = "longest",
        truncation: bool | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        transform: Callable[[Image.Image], Any] | None = None,
        add_eos_token: bool = False,
        add_end_of_utterance_token: bool | None = None,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> BatchFeature:
        """Inputs with padded images, as the reference returns them.

        Args:
            prompts: a list of texts, URLs and images in any order, or a list of such lists. Spaces around each text are
                dropped, and a text that is a URL and nothing else is an image.
            text: the same as `prompts`; with `images` one text or a list of texts.
            images: with texts: per placeholder if the texts have any `<image>`. Otherwise one per text, which it
                precedes, or a list per text, which it follows. Texts are then never taken for URLs.
            padding: False, True or `"longest"`, or `"max_length"`.
            truncation: cut texts to `max_length`, and drop the images whose tokens are cut off. None cuts if `max_length`
                is given and `padding` is False.
            max_length: in tokens.
            padding_side: `"left"` or `"right"`; None is the tokenizer's.
            transform: makes a tensor of each image, as in training; all of one shape.
            add_eos_token: end each prompt with `</s>`.
            add_end_of_utterance_token: write `<end_of_utterance>` between texts that follow each other; None does if
                the tokenizer has the token.
            return_tensors: `"pt"`, `"np"`, or None for lists of ids and numpy otherwise.
            options: settings of images for this call (`image_size`, `image_mean`, `image_std`), and whatever of the
                reference's changes nothing.

        Returns:
            `input_ids` and `attention_mask` (B, T) int64, `pixel_values` (B, N, 3, S, S) float32, N the most images that a
            prompt has or 1, zeros where there is none, and `image_attention_mask` (B, T, N) int64, 1 where a token sees an
            image; without any image in the batch (B, T, 1) of False.

        Raises:
            ImageCountError: a prompt's placeholders and images differ in number.
            ImageError: an image cannot be fetched or used; names it.
            InputError: prompts, images and options do not fit each other.
        """
        import torch

        if return_tensors not in ("pt", "np", None):
            raise OptionError(f"return_tensors = {return_tensors!r} is not one of 'pt', 'np', None")
        for_images = self._image_options(options)
        rows = self._rows(prompts, text, images, end_of_utterance=self._marks_utterances(add_end_of_utterance_token))
        end = self._end(add_eos_token)
        texts = [f"{self._bos}{_spelled(pieces)}{end}" for pieces, _ in rows]
        for i, (written, (_, row)) in enumerate(zip(texts, rows, strict=True)):
            if written.count(IMAGE_TOKEN) != len(row):
                where = f"prompt {i + 1}" if len(rows) > 1 else "the prompt"
                raise ImageCountError(placeholders=written.count(IMAGE_TOKEN), images=len(row), where=where)
        cut = self._cuts(truncation, max_length, padding)
        encoded = [self.tokenizer.encode(one, add_special_tokens=False, truncation=cut, max_length=max_length) for one in texts]
        out = self.tokenizer.pad(
            encoded, padding=padding, max_length=max_length, padding_side=padding_side, return_tensors="pt"
        )
        pixels = [self.image_processor.preprocess(row, transform=transform, **for_images) for _, row in rows]
        counts = [ids.count(self.image_token_id) for ids in encoded]
        most = max(1, *(len(row) for row in pixels))
        out["pixel_values"] = self._padded(pixels, counts, most)
        if any(len(row) for row in pixels):
            out["image_attention_mask"] = mask_of(self._seen(out["input_ids"]), most)
        else:
            out["image_attention_mask"] = torch.zeros(*out["input_ids"].shape, 1, dtype=torch.bool)
        if return_tensors != "pt":
            out = BatchFeature({key: value.numpy() for key, value in out.items()})
        if return_tensors is None:
            out.update({key: out[key].tolist() for key in ("input_ids", "attention_mask")})
        return out

    def inputs(self, prompts: Sequence[str], images: Sequence[Sequence[Any]], *, padding_side: str = "left") -> ModelInputs:
        """The engine's inputs: only the images there are, and which of them each token sees.

        Args:
            prompts: texts with one `<image>` per image, taken as they are: nothing is fetched or stripped.
            images: a list per prompt: what `prepare` made, or anything `open_image` takes.
            padding_side: of the ids.

        Raises:
            ImageCountError: a prompt's placeholders and images differ in number.
            InputError: prompts or images are of the wrong kind.
        """
        import torch

        texts, rows = arrange(prompts, images, placeholder=IMAGE_TOKEN)
        if texts is None or rows is None:
            raise InputError("prompts must be a list of texts, not None")
        ids = [self.tokenizer.encode(self.expand(text)) for text in texts]
        batch = self.tokenizer.pad(ids, padding_side=padding_side, return_tensors="pt")
        seen_BT = self._seen(batch["input_ids"])
        return ModelInputs(
            input_ids_BT=batch["input_ids"],
            attention_mask_BT=batch["attention_mask"],
            images_CHW=tuple(part for row in self._prepared(rows) for image in row for part in image.parts),
            images_per_row=tuple(len(row) for row in rows),
            seen_BT=torch.where(batch["attention_mask"] == 0, -1, seen_BT),
            interpolated=self.interpolated,
        )

    def expand(self, prompt: str) -> str:
        """The prompt with the fake tokens around every `<image>`; those that are there already are not doubled.

        What `tokenizer.encode` makes of it begins with one `<s>`, whatever the tokenizer's files say.
        """
        return self._lead + _spelled(pieces_of_text(prompt.removeprefix(self._bos)))

    def _open_image(self, image: Any) -> Image.Image:
        return open_image(image)

    @property
    def _parts_per_image(self) -> int:
        return 1

    def _chat_batch(self, prompts: list[str], rows: list[list[Any]], **options: Any) -> BatchFeature:
        return self(text=prompts, images=rows, **options)

    def _rows(self, prompts: Any, text: Any, images: Any, *, end_of_utterance: bool) -> list[tuple[list[Piece], list[Any]]]:
        if prompts is not None and text is not None:
            raise InputError("prompts and text are two names of one thing; give one of them")
        given = prompts if text is None else text
        if given is None:
            raise InputError("give prompts, or text and images")
        if images is None and not isinstance(text, str):
            return pieces_between(given, mark=END_OF_UTTERANCE if end_of_utterance else "")
        return pieces_apart(given, images, bos=self._bos)

    def _marks_utterances(self, asked: bool | None) -> bool:
        known = self.end_of_utterance_id is not None
        if asked and not known:
            raise OptionError(
                f"add_end_of_utterance_token: the tokenizer has no {END_OF_UTTERANCE!r} (a base model?), "
                "so the model cannot read it; leave the option out"
            )
        return known if asked is None else bool(asked)

    def _end(self, add_eos_token: bool) -> str:
        if not add_eos_token:
            return ""
        if self.tokenizer.eos_token is None:
            raise OptionError("add_eos_token: the tokenizer has no eos_token; leave the option out")
        return self.tokenizer.eos_token

    @staticmethod
    def _cuts(truncation: bool | None, max_length: int | None, padding: bool | str) -> bool:
        if truncation not in (True, False, None):
            raise OptionError(f"truncation = {truncation!r} is not one of True, False, None")
        cut = truncation if truncation is not None else max_length is not None and padding is False
        if max_length is not None and not cut and padding != "max_length":
            raise OptionError(
                f"max_length = {max_length} has no effect with truncation={truncation} and padding={padding!r}; "
                "give truncation=True, padding='max_length' or both"
            )
        return cut

    def _seen(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        eos = self.tokenizer.eos_token_id
        return seen_images(input_ids_BT, image_token_id=self.image_token_id, eos_token_id=eos)

    def _padded(self, pixels: Sequence[torch.Tensor], counts: Sequence[int], most: int) -> torch.Tensor:
        """Pixels (B, N, C, S, S) of each row's images whose tokens were not cut off."""
        import torch

        shapes = {row.shape[1:] for row in pixels if len(row)}
        if len(shapes) > 1:
            raise InputError(f"transform gives tensors of several shapes: {', '.join(str(tuple(s)) for s in shapes)}")
        side = self.image_processor.image_size
        shape = next(iter(shapes), (self.image_processor.image_num_channels, side, side))
        out_BNCSS = torch.zeros(len(pixels), most, *shape)
        for b, (row, count) in enumerate(zip(pixels, counts, strict=True)):
            if count:
                out_BNCSS[b, :count] = row[-count:] if self.tokenizer.truncation_side == "left" else row[:count]
        return out_BNCSS


def _spelled(pieces: Iterable[Piece]) -> str:
    """Pieces as the model reads them: neighbouring images share the fake token between them."""
    spelled, after_image = "", False
    for piece in pieces:
        if piece is None:
            spelled += f"{IMAGE_TOKEN}{FAKE_TOKEN}" if after_image else f"{FAKE_TOKEN}{IMAGE_TOKEN}{FAKE_TOKEN}"
        else:
            spelled += piece
        after_image = piece is None
    return spelled


def _check_family(config: Config) -> None:
    if not isinstance(config, Idefics1Config):
        raise ConfigError(f"a config of model_type {config.model_type!r} is none for {IdeficsProcessor.published_name}")
