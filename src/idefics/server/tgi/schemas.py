"""Bodies of the text-generation-inference API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from idefics.server.http.bodies import Body, Messages, Strict, Texts

__all__ = ["ChatTokenizeRequest", "Generate", "GenerateOrStream", "GrammarParameter", "Parameters", "TgiError", "Tokenize"]

Seed = Annotated[int, Field(ge=0, lt=2**64)]
Number = Annotated[float, Field(allow_inf_nan=False)]


class GrammarParameter(Strict):
    """What answers must look like."""

    type: Literal["json", "regex", "json_schema", "json_object"]
    value: str | dict[str, Any]


class Parameters(Strict):
    """How to continue a prompt. Ranges are checked with the original's own messages, not here."""

    model_config = ConfigDict(extra="forbid")

    best_of: int | None = None
    temperature: Number | None = None
    repetition_penalty: Number | None = None
    frequency_penalty: Number | None = None
    top_k: int | None = None
    top_p: Number | None = None
    typical_p: Number | None = None
    do_sample: bool = False
    max_new_tokens: int | None = Field(default=100, description="null: as many as there is room for.")
    return_full_text: bool | None = None
    stop: Texts = Field(default_factory=list)
    truncate: int | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: Seed | None = None
    top_n_tokens: int | None = None
    grammar: GrammarParameter | None = None
    adapter_id: str | None = None
    do_image_splitting: bool | None = Field(default=None, description="Not in the original: cut images in sub-images.")
    max_image_size: int | None = Field(default=None, description="Not in the original: longest edge of images in pixels.")


def _sampled(given: Any) -> Any:
    """The original samples where `parameters` is left out, and does not where it is there, however empty."""
    return {"do_sample": True} if given is None else given


class TgiError(BaseModel):
    """What went wrong, and its kind."""

    error: str
    error_type: str


class Generate(Body):
    """A prompt; `![](URL)` in it is an image."""

    inputs: str
    parameters: Annotated[Parameters, BeforeValidator(_sampled)] = Field(default_factory=lambda: Parameters(do_sample=True))


class GenerateOrStream(Generate):
    """A prompt, answered whole or token by token."""

    stream: bool = False


class Tokenize(Body):
    """A prompt to take apart."""

    inputs: str
    parameters: Parameters | None = None


class ChatTokenizeRequest(Body):
    """A chat to write out and take apart; what else a chat completion has is not looked at."""

    messages: Messages
    do_image_splitting: bool | None = None
    max_image_size: int | None = None
