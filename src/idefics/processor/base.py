"""What every processor can do, whatever its family: the facade, the command line and the self-test know no more."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from idefics.config.json_files import read_json, write_json
from idefics.config.keys import Keys
from idefics.errors import ConfigError, InputError, NotOffered, OptionError, TemplateError
from idefics.processor.batch import BatchFeature
from idefics.processor.call_options import NEUTRAL, asking, check_left_over
from idefics.processor.described import Described
from idefics.processor.literal import Chat, literal_prompt
from idefics.processor.messages import fill_images, normalise
from idefics.processor.prepared import LevelMaker, PreparedImage, prepared
from idefics.processor.template import IDEFICS2_TEMPLATE, render, render_unfinished
from idefics.processor.tokenizer import Tokenizer

if TYPE_CHECKING:
    from PIL import Image

    from idefics.config import Config
    from idefics.inputs import ModelInputs

__all__ = ["END_OF_UTTERANCE", "FAKE_TOKEN", "IMAGE_TOKEN", "Images", "Processor"]

FAKE_TOKEN = "<fake_token_around_image>"
IMAGE_TOKEN = "<image>"
END_OF_UTTERANCE = "<end_of_utterance>"

_OF_CHATS_ELSEWHERE = {
    "tools": "these models were not taught to call any",
    "documents": "put them into a message",
    "return_assistant_tokens_mask": "idefics.data.labels marks what is to be learned",
    "sanitize_control_tokens": "chat_prompt takes special tokens in messages for text",
}


class Images(LevelMaker, Protocol):
    """How images become pixels, as far as all families agree."""

    @property
    def option_names(self) -> Collection[str]:
        """Settings that a call may change for itself."""
        ...

    def processed_sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """(width, height) of every sub-image that an image of these sides becomes, as the model sees it."""
        ...

    def adjusted(self, *, max_image_size: int | None = None, split: bool | None = None) -> Self:
        """The same with another longest edge in pixels, or with or without splitting; None keeps what is.

        Raises:
            OptionError: this family's images cannot be adjusted so.
        """
        ...

    def sized(self, image_size: int) -> Self:
        """The same with squares of another side in pixels.

        Raises:
            OptionError: this family's images are no squares, or the side is unusable.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Content of `preprocessor_config.json`."""
        ...


class Processor(Described):
    """Texts and images to a model's inputs, and ids back to text.

    Args:
        image_processor: how images become pixels.
        tokenizer: must know `<image>` and `<fake_token_around_image>`; nothing is added to it.
        chat_template: jinja source; None takes Idefics2's own if the tokenizer has `<end_of_utterance>`, else none.

    Attributes:
        tokenizer: of the checkpoint.
        image_processor: of the checkpoint.
        chat_template: jinja source; None where the model has no chats.
        image_token: what stands for an image in a prompt; `image_token_id` is its id.
        fake_image_token: stands around images; `fake_image_token_id` is its id.
        end_of_utterance_id: None for base checkpoints, whose embeddings have no such row.
        published_name: the `processor_class` of published files.

    Raises:
        ConfigError: the tokenizer lacks a token.
        InputError: the tokenizer or the image processor is of another kind, another library's say.
    """

    image_token = IMAGE_TOKEN
    fake_image_token = FAKE_TOKEN
    published_name: str

    def __init__(self, image_processor: Images, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
        _check_kinds(image_processor, tokenizer, self.published_name)
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_token_id = self._required_id(IMAGE_TOKEN)
        self.fake_image_token_id = self._required_id(FAKE_TOKEN)
        self.end_of_utterance_id: int | None = tokenizer.backend.token_to_id(END_OF_UTTERANCE)
        if chat_template is None and self.end_of_utterance_id is not None:
            chat_template = IDEFICS2_TEMPLATE
        self.chat_template = chat_template

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, *, keys: Keys | None = None, **overrides: Any) -> Self:
        """Reads a checkpoint folder of either era; `keys` lets unknown ones of its files pass, None does not."""

    @classmethod
    @abstractmethod
    def for_config(cls, config: Config, tokenizer: Tokenizer) -> Self:
        """A processor with the settings that models of this size are published with."""

    @classmethod
    @abstractmethod
    def images_for(cls, config: Config) -> Images:
        """The image settings that models of this size are published with."""

    @classmethod
    @abstractmethod
    def tokens_of(cls, config: Config) -> int:
        """Image tokens that one sub-image fills in prompts of such a model."""

    @property
    @abstractmethod
    def tokens_per_sub_image(self) -> int:
        """Image tokens that one sub-image fills in this processor's prompts."""

    @abstractmethod
    def save_pretrained(self, folder: Path | str, **options: Any) -> None:
        """Writes the published files; options of the reference's are taken where they ask for nothing.

        Raises:
            OptionError: an option asks for more.
        """

    @property
    @abstractmethod
    def model_input_names(self) -> list[str]:
        """What calls return."""

    def to_dict(self) -> dict[str, Any]:
        """The settings of texts and images; the tokenizer's are its own."""
        return {"processor_class": self.published_name, "image_processor": self.image_processor.to_dict()}

    @abstractmethod
    def with_small_images(self, config: Config) -> Self:
        """The same processor for images as small as the model takes, for tests of models of any size."""

    @abstractmethod
    def inputs(self, prompts: Sequence[str], images: Sequence[Sequence[Any]], *, padding_side: str = "left") -> ModelInputs:
        """The engine's inputs of prompts with one `image_token` per image.

        Args:
            prompts: with one `image_token` per image.
            images: a list per prompt: what `prepare` made, or anything it takes.
            padding_side: of the ids.

        Raises:
            ImageCountError: a prompt's placeholders and images differ in number.
        """

    def prepare(self, image: Any) -> PreparedImage:
        """One image opened, split and resized by the calling thread alone; `inputs` takes it like any other image.

        Raises:
            ImageError: it cannot be used; names it.
        """
        return self._prepared([[image]], workers=1)[0][0]

    def _prepared(self, rows: Sequence[Sequence[Any]], *, workers: int | None = None) -> list[list[PreparedImage]]:
        return prepared(rows, self._open_image, self.image_processor, parts=self._parts_per_image, workers=workers)

    @abstractmethod
    def _open_image(self, image: Any) -> Image.Image:
        """The image decoded, as this family reads it."""

    @property
    @abstractmethod
    def _parts_per_image(self) -> int:
        """Sub-images that one image becomes."""

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> BatchFeature:
        """Inputs as the reference returns them, with padded ids and pixels; every family takes `text=` and `images=`."""

    def _image_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Of a call's options that `__call__` does not name, those for images; the rest asks for nothing.

        Raises:
            OptionError: an option that there is not.
        """
        known = {*self.image_processor.option_names}
        left = {name: value for name, value in options.items() if name not in known}
        if left:
            named = {*inspect.signature(type(self).__call__).parameters} - {"self", "options"}
            check_left_over(self.published_name, left, there=named | known)
        return {name: value for name, value in options.items() if name in known}

    @abstractmethod
    def expand(self, prompt: str) -> str:
        """The prompt with everything spelled out that the model reads."""

    def adjusted(self, *, max_image_size: int | None = None, split: bool | None = None) -> Self:
        """The same processor with adjusted images; see `Images.adjusted`.

        Raises:
            OptionError: this family's images cannot be adjusted so.
        """
        return self._with_images(self.image_processor.adjusted(max_image_size=max_image_size, split=split))

    def sized(self, image_size: int) -> Self:
        """The same processor with images of another size than the model was made for; see `Images.sized`.

        Raises:
            OptionError: this family's images are no squares, or the side is unusable.
        """
        return self._with_images(self.image_processor.sized(image_size))

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        continue_final_message: bool | str = False,
        images: Any = None,
        **options: Any,
    ) -> Any:
        """The prompt of a chat, or of each of a list of chats; with `tokenize` its ids or whole inputs.

        As in the reference, special tokens in texts are read as such; `chat_prompt` takes them for text.

        Args:
            conversation: a list of messages or a list of such lists; image parts may carry their image.
            chat_template: instead of the checkpoint's.
            add_generation_prompt: end with `Assistant:`.
            tokenize: return ids instead of text.
            return_dict: with `tokenize`, return everything that `__call__` returns.
            return_tensors: with `tokenize`.
            continue_final_message: end with the last text of the last message, which the model goes on with.
            images: with `tokenize`, for image parts that carry none, in reading order (all chats' in one list).
            options: further options of `__call__`, with `tokenize`.

        Raises:
            NotOffered: tools, documents or masks of the assistant's tokens are asked for.
            OptionError: options that contradict each other, or have no effect.
            TemplateError: the messages or the template are unusable, or there is no template.
        """
        for name in set(asking(options)) & {*_OF_CHATS_ELSEWHERE}:
            raise NotOffered(f"apply_chat_template({name}=...)", instead=_OF_CHATS_ELSEWHERE[name])
        several = isinstance(conversation, list | tuple) and bool(conversation) and isinstance(conversation[0], list | tuple)
        chats = [normalise(chat) for chat in (conversation if several else [conversation])]
        write = self._written(
            chat_template,
            add_generation_prompt=add_generation_prompt,
            unfinished=_continues(continue_final_message, add_generation_prompt=add_generation_prompt),
        )
        prompts = [write(chat) for chat, _ in chats]
        if not tokenize:
            unused = sorted(asking(options, {**NEUTRAL, "padding": (False,), "truncation": (False,)})) + [
                name for name, value in (("images", images), ("return_tensors", return_tensors)) if value is not None
            ]
            if return_dict or unused:
                raise OptionError(f"{', '.join(unused) or 'return_dict'}: has no effect without tokenize=True")
            return prompts if several else prompts[0]
        given = list(images) if isinstance(images, list | tuple) else [] if images is None else [images]
        filled = iter(fill_images([image for _, carried in chats for image in carried], given))
        rows = [[next(filled) for _ in carried] for _, carried in chats]
        batch = self._chat_batch(prompts, rows, return_tensors=return_tensors, **options)
        if return_dict:
            return batch
        return batch["input_ids"] if several or return_tensors is not None else batch["input_ids"][0]

    def chat_prompt(self, messages: Any, *, add_generation_prompt: bool = True) -> str:
        """The prompt of a chat in which special tokens are the template's alone: in the messages' texts they are text.

        For `inputs`, `expand` and `tokenizer.encode`; a text without special tokens makes the prompt that
        `apply_chat_template` makes of it. To be shown to people, it goes through `idefics.processor.literal.unmarked`.

        Args:
            messages: one chat, as of `apply_chat_template`.
            add_generation_prompt: end with `Assistant:`.

        Raises:
            TemplateError: the messages or the template are unusable, or there is no template.
        """
        write = self._written(None, add_generation_prompt=add_generation_prompt)
        return literal_prompt(write, normalise(messages)[0], self.tokenizer.backend)

    def _written(self, given: str | None, *, add_generation_prompt: bool, unfinished: bool = False) -> Callable[[Chat], str]:
        """What makes prompts of chats in the template's form."""
        template = given if given is not None else self.chat_template
        if template is None:
            raise TemplateError(
                "this checkpoint has no chat template (a base model?); write the prompt yourself or pass chat_template"
            )
        named = {name: self.tokenizer.special_tokens.get(name, "") for name in ("bos_token", "eos_token")}
        if unfinished:
            return lambda chat: render_unfinished(template, chat, **named)
        return lambda chat: render(template, chat, add_generation_prompt=add_generation_prompt, **named)

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

    @abstractmethod
    def _chat_batch(self, prompts: list[str], rows: list[list[Any]], **options: Any) -> BatchFeature:
        """What `__call__` returns for rendered prompts, which may begin with `<s>` already, and their images."""

    def _with_images(self, image_processor: Images) -> Self:
        other = copy.copy(self)
        other.image_processor = image_processor
        return other

    def _save(self, folder: Path, config: Mapping[str, Any] | None) -> None:
        """Writes all files; `config` is `processor_config.json`, None for a family that had none."""
        self.tokenizer.config["processor_class"] = self.published_name
        self.tokenizer.save(folder)
        # Not nested as transformers 5 writes it: 4.40 refuses that, and 5 reads this.
        write_json(folder / "preprocessor_config.json", self.image_processor.to_dict())
        for stale in ("chat_template.jinja", "chat_template.json", "processor_config.json"):  # would be read before ours
            (folder / stale).unlink(missing_ok=True)
        if config is not None:
            write_json(folder / "processor_config.json", {**config, "processor_class": self.published_name})
        if self.chat_template is not None:
            (folder / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
            path = folder / "tokenizer_config.json"
            write_json(path, {**read_json(path), "chat_template": self.chat_template})

    def _required_id(self, token: str) -> int:
        found = self.tokenizer.backend.token_to_id(token)
        if found is None:
            raise ConfigError(f"the tokenizer has no {token!r}; it is not that of a checkpoint for {self.published_name}")
        return int(found)


def _continues(asked: bool | str, *, add_generation_prompt: bool) -> bool:
    if asked not in (False, True, None, "", "content"):
        raise OptionError(f"continue_final_message = {asked!r} is not one of True, False, 'content'")
    if asked and add_generation_prompt:
        raise OptionError("continue_final_message and add_generation_prompt contradict each other; give one")
    return bool(asked)


def _check_kinds(image_processor: Any, tokenizer: Any, name: str) -> None:
    for given, due, where in (
        (tokenizer, isinstance(tokenizer, Tokenizer), "Tokenizer.from_folder"),
        (image_processor, hasattr(image_processor, "levels"), "its image processor's from_pretrained"),
    ):
        if not due:
            kind = f"{type(given).__module__}.{type(given).__qualname__}"
            what = "tokenizer" if given is tokenizer else "image processor"
            raise InputError(f"{name} takes no {what} of type {kind}; {where} reads the same files, and from_pretrained all")
