"""What every processor can do, whatever its family: the facade, the command line and the self-test know no more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from idefics.processor.batch import BatchFeature
from idefics.processor.tokenizer import Tokenizer

if TYPE_CHECKING:
    from idefics.config import Config
    from idefics.inputs import ModelInputs

__all__ = ["END_OF_UTTERANCE", "FAKE_TOKEN", "IMAGE_TOKEN", "Images", "Processor"]

FAKE_TOKEN = "<fake_token_around_image>"
IMAGE_TOKEN = "<image>"
END_OF_UTTERANCE = "<end_of_utterance>"


class Images(Protocol):
    """How images become pixels, as far as all families agree."""

    def processed_sizes(self, width: int, height: int) -> list[tuple[int, int]]:
        """(width, height) of every sub-image that an image of these sides becomes, as the model sees it."""
        ...

    def adjusted(self, *, max_image_size: int | None = None, split: bool | None = None) -> Self:
        """The same with another longest edge in pixels, or with or without splitting; None keeps what is.

        Raises:
            OptionError: this family's images cannot be adjusted so.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Content of `preprocessor_config.json`."""
        ...


class Processor(ABC):
    """Texts and images to a model's inputs, and ids back to text.

    Attributes:
        tokenizer: of the checkpoint.
        image_processor: of the checkpoint.
        chat_template: jinja source; None where the model has no chats.
        image_token: what stands for an image in a prompt; `image_token_id` is its id.
        fake_image_token_id: id of the token around images.
        end_of_utterance_id: None for base checkpoints.
        tokens_per_sub_image: image tokens that one sub-image fills.
    """

    tokenizer: Tokenizer
    image_processor: Images
    chat_template: str | None
    image_token: str
    image_token_id: int
    fake_image_token_id: int
    end_of_utterance_id: int | None
    tokens_per_sub_image: int

    @classmethod
    @abstractmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """Reads a checkpoint folder of either era."""

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
        """Image tokens that one sub-image fills."""

    @abstractmethod
    def save_pretrained(self, folder: Path | str) -> None:
        """Writes the published files."""

    @abstractmethod
    def adjusted(self, *, max_image_size: int | None = None, split: bool | None = None) -> Self:
        """The same processor with adjusted images; see `Images.adjusted`."""

    @abstractmethod
    def with_small_images(self, config: Config) -> Self:
        """The same processor for images as small as the model takes, for tests of models of any size."""

    @abstractmethod
    def inputs(self, prompts: Sequence[str], images: Sequence[Sequence[Any]], *, padding_side: str = "left") -> ModelInputs:
        """The engine's inputs of prompts with one `image_token` per image.

        Raises:
            ImageCountError: a prompt's placeholders and images differ in number.
        """

    @abstractmethod
    def padded(self, prompts: Sequence[str], images: Sequence[Sequence[Any]]) -> BatchFeature:
        """The same as the reference returns it, with padded ids and pixels."""

    @abstractmethod
    def expand(self, prompt: str) -> str:
        """The prompt with everything spelled out that the model reads."""

    @abstractmethod
    def apply_chat_template(self, messages: Any, *, add_generation_prompt: bool = False, **options: Any) -> Any:
        """The prompt of a chat."""

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
