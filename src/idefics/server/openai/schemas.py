"""Bodies of OpenAI's API, as far as it is offered. What a body holds beyond it is refused by name, unless it is null."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from idefics.server.http.bodies import Body, Messages, Nullable, Texts

__all__ = ["ChatCompletionRequest", "Completing", "CompletionRequest", "OpenAIError", "ResponseFormat"]

Number = Annotated[float, Field(allow_inf_nan=False)]


class ErrorFacts(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """An error in OpenAI's form, with text-generation-inference's kind beside it."""

    error: ErrorFacts
    error_type: str


class StreamOptions(Nullable):
    """What a stream tells beside the answer."""

    include_usage: bool = False
    include_obfuscation: bool = Field(default=False, description="Accepted; nothing is obfuscated.")


class Completing(Body, Nullable):
    """What both kinds of completions have."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Any name: one model is served.")
    max_tokens: int | None = None
    temperature: Number | None = Field(default=None, description="Left out: 1. 0 takes the likeliest token.")
    top_p: Number | None = None
    n: int | None = None
    stop: str | Texts | None = None
    seed: int | None = None
    frequency_penalty: Number | None = None
    presence_penalty: Number | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Accepted and not used.")
    logit_bias: dict[str, Any] | list[Any] | None = Field(default=None, description="Refused unless empty.")
    top_k: int | None = Field(default=None, description="Beyond OpenAI's API.")
    min_p: Number | None = Field(default=None, description="Beyond OpenAI's API.")
    repetition_penalty: Number | None = Field(default=None, description="Beyond OpenAI's API.")
    do_image_splitting: bool | None = Field(default=None, description="Beyond OpenAI's API: cut images in sub-images.")
    max_image_size: int | None = Field(default=None, description="Beyond OpenAI's API: longest edge of images in pixels.")


class ResponseFormat(Nullable):
    """What answers must look like: OpenAI's forms, and text-generation-inference's, with a `value`."""

    type: str
    json_schema: dict[str, Any] | None = None
    value: str | dict[str, Any] | None = None


class ChatCompletionRequest(Completing):
    """A chat to go on with."""

    messages: Messages
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Any] | None = Field(default=None, description="Refused unless empty.")
    tool_choice: Any = Field(default=None, description="Refused unless `none` or `auto`.")
    tool_prompt: str | None = Field(default=None, description="Accepted and not used: there are no tools.")
    parallel_tool_calls: bool | None = Field(default=None, description="Accepted and not used: there are no tools.")
    metadata: dict[str, Any] | None = Field(default=None, description="Accepted and not used.")
    store: bool | None = Field(default=None, description="Refused unless false: nothing is stored.")


class CompletionRequest(Completing):
    """A text to go on with; `![](URL)` in it is an image."""

    prompt: str | list[Any]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = Field(default=None, description="Refused.")
