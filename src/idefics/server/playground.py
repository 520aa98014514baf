"""The page at `/playground`, and what only a page asks for: facts for its controls, and the plan of a request."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.responses import Response

from idefics.assets import DEMO, PLAYGROUND, knowledge
from idefics.errors import OptionError
from idefics.plan import PRECISIONS, Plan, Precision, make_plan
from idefics.server.http.bodies import Body, Messages
from idefics.server.http.routes import taking_route
from idefics.server.http.sse import Json
from idefics.server.openai.asking import COMPLETION_TOKENS
from idefics.server.prepare.prompts import Prompt, prompt_of_markdown
from idefics.server.prepare.requests import Asked, Words
from idefics.server.service import Service
from idefics.server.tgi.schemas import TgiError

__all__ = ["page_paths", "playground_router"]

PAGE = "/playground"
CHAT_TOKENS = 256
"""New tokens of a chat to plan for where the body does not say."""
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
_EXAMPLES = 3
_READS = ["GET", "HEAD"]
_HEADERS = {
    # Nothing but the server itself: no other host, no inline script or style, nobody's frame.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
# A name stands in brackets because the URL of an image in markdown ends at the first one: no text can take a part's name.
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?: \((\w{1,32})\))?")


class Example(BaseModel):
    """A question that one can begin with."""

    image: str = Field(description="The name of a picture beside the page.")
    question: str


class Facts(BaseModel):
    """What the page's controls need to know."""

    model: str
    dtype: str
    device: str
    positions: int = Field(description="Tokens of prompt and answer together at most.")
    chats: bool = Field(description="Whether the model has chats; base models have none.")
    adjustable: bool = Field(description="Whether images can be split and made smaller.")
    splits: bool = Field(description="Whether images are split if a request does not say.")
    longest_image: int = Field(description="Edge in pixels that images can have at most.")
    longest_edge: int = Field(description="Edge in pixels that larger images are brought to if a request does not say.")
    body_bytes: int = Field(description="Of a request at most.")
    knows: str | None = Field(description="What the model can be asked about, where that is known.")
    examples: list[Example] = Field(description="Questions to begin a chat with.")


class PlanRequest(Body):
    """A chat or a text to plan for, in OpenAI's form. An image whose URL is a size, such as `640x480`, counts as one of that
    size; one with any other URL is not fetched and counts as the largest. In messages a size can be followed by a name, as in
    `640x480 (first)`, by which the image is found again: texts may hold more images, in markdown.
    """

    model_config = ConfigDict(extra="forbid")

    messages: Messages | None = Field(default=None, description="Of a chat; either these or a `prompt`.")
    prompt: str | None = Field(default=None, description="A text that is continued, with images in markdown.")
    max_tokens: int | None = Field(default=None, ge=1, description=f"Left out: {CHAT_TOKENS}; {COMPLETION_TOKENS} for a text.")
    do_image_splitting: bool | None = None
    max_image_size: int | None = None

    @model_validator(mode="after")
    def _check_asked(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("either `messages` or `prompt` must be given, and not both")
        return self

    @property
    def new_tokens(self) -> int:
        """Of the answer, at most."""
        return self.max_tokens or (CHAT_TOKENS if self.prompt is None else COMPLETION_TOKENS)


class PlannedImage(BaseModel):
    """One image."""

    name: str | None = Field(description="That its URL gave it.")
    width: int
    height: int
    tokens: int = Field(description="Positions that it fills, without those of the tokens around it.")
    seen: list[tuple[int, int]] = Field(description="Width and height of every sub-image as the model sees it.")


class PlannedTokens(BaseModel):
    """Positions of a request."""

    images: int = Field(description="Those around images included.")
    text: int
    prompt: int
    answer: int = Field(description="At most.")
    positions: int = Field(description="That the model has.")


class PlannedBytes(BaseModel):
    """Memory of a request that is alone."""

    weights: int
    cache: int
    vision: int
    prompt: int
    total: int = Field(description="At the peak: vision and prompt follow one another.")


class PlanAnswer(BaseModel):
    """What a request takes."""

    images: list[PlannedImage]
    tokens: PlannedTokens
    fits: bool = Field(description="Whether prompt and answer fit the model's positions.")
    dtype: str
    bytes: PlannedBytes


def page_paths() -> frozenset[str]:
    """Where the page and its parts are: public, as they hold nothing of the model or of anybody's chats."""
    return frozenset((PAGE, f"{PAGE}/", *(f"{PAGE}/{file.name}" for file in _files())))


def playground_router(service: Service) -> APIRouter:
    """The page and its routes, for one served model."""
    told = {400: "Too deep", 413: "Too large", 422: "Not valid", 429: "Overloaded", 503: "Stopping", 504: "Time is over"}
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": TgiError, "description": text} for status, text in told.items()
    }
    router = APIRouter(prefix=PAGE, tags=["playground"], route_class=taking_route(service))
    for file in _files():
        _add_file(router, file)
    router.add_api_route("/", _without_slash, methods=_READS, include_in_schema=False)

    @router.get("/facts", summary="What the page's controls need to know", response_model=Facts)
    async def facts() -> Response:
        return Json(_facts(service).model_dump())

    @router.post("/plan", summary="Tokens and memory of a chat or a text", response_model=PlanAnswer, responses=errors)
    async def plan(body: PlanRequest) -> Response:
        prompt = await service.preparer.in_worker(lambda: _prompt(body, service))
        words = Words(prompt="prompt" if body.messages is None else "messages", new_tokens="max_tokens")
        asked = Asked(prompt=prompt, words=words, split=body.do_image_splitting, max_image_size=body.max_image_size)
        ids = [token.id for token in await service.preparer.tokens(asked)]
        return Json(await service.preparer.in_worker(lambda: _planned(service, asked, ids, new=body.new_tokens).model_dump()))

    return router


def _prompt(body: PlanRequest, service: Service) -> Prompt:
    if body.messages is not None:
        return service.preparer.chat(body.messages)
    return prompt_of_markdown(body.prompt or "", service.model.processor, images=service.limits.images)


def _files() -> list[Path]:
    return sorted(file for folder in (PLAYGROUND, DEMO) for file in folder.iterdir() if file.suffix in _TYPES)


def _add_file(router: APIRouter, file: Path) -> None:
    content, kind = file.read_bytes(), _TYPES[file.suffix]

    async def page() -> Response:
        return Response(content, media_type=kind, headers=_HEADERS)

    router.add_api_route("" if file.name == "index.html" else f"/{file.name}", page, methods=_READS, include_in_schema=False)


async def _without_slash() -> Response:
    # Relative, so that it holds below a proxy's prefix, too; the page's own links are relative to the path without the slash.
    return Response(status_code=308, headers={**_HEADERS, "location": f"..{PAGE}"})


def _facts(service: Service) -> Facts:
    model = service.model
    settings = model.processor.image_processor.to_dict()
    edge = settings.get("size", {}).get("longest_edge", model.longest_image)
    try:
        model.processor.adjusted(max_image_size=model.longest_image, split=True)
        adjustable = True
    except OptionError:
        adjustable = False
    chats = model.processor.chat_template is not None
    return Facts(
        model=model.name,
        dtype=model.dtype,
        device=model.device,
        positions=model.positions,
        chats=chats,
        adjustable=adjustable,
        splits=bool(settings.get("do_image_splitting")),
        longest_image=model.longest_image,
        longest_edge=min(edge, model.longest_image),
        body_bytes=service.limits.body_bytes,
        knows=knowledge(model.name),
        # Whatever has chats can be asked about them. A base model goes on with a text, and a bare question is a poor one.
        examples=_examples() if chats else [],
    )


def _examples() -> list[Example]:
    talks = json.loads((DEMO / "questions.json").read_text(encoding="utf-8"))
    alone = [talk for talk in talks if len(talk["images"]) == 1]
    return [Example(image=talk["images"][0], question=talk["turns"][0]["question"]) for talk in alone[:_EXAMPLES]]


def _planned(service: Service, asked: Asked, ids: list[int], *, new: int) -> PlanAnswer:
    processor = service.model.processor
    named = [_named_size(reference, service.model.longest_image) for reference in asked.prompt.references]
    sizes = [size for _, size in named]

    def plan(text_tokens: int, precisions: tuple[Precision, ...]) -> Plan:
        return make_plan(
            service.model.config,
            sizes,
            seen_by=processor.image_processor,
            split=asked.split,
            max_image_size=asked.max_image_size,
            text_tokens=text_tokens,
            new_tokens=new,
            precisions=precisions,
        )

    # A plan takes all images for neighbours, which share the token between them; what the prompt has beyond that is text to it.
    beside = len(ids) - plan(0, ()).framed_tokens
    made = plan(beside, (_precision(service.model.dtype),))
    memory = made.memory[0]
    around = (processor.image_token_id, processor.fake_image_token_id)
    in_images = sum(id in around for id in ids)
    return PlanAnswer(
        images=[
            PlannedImage(name=name, width=image.width, height=image.height, tokens=image.tokens, seen=list(image.seen))
            for (name, _), image in zip(named, made.images, strict=True)
        ],
        tokens=PlannedTokens(
            images=in_images, text=len(ids) - in_images, prompt=len(ids), answer=new, positions=service.model.positions
        ),
        fits=len(ids) + new <= service.model.positions,
        dtype=service.model.dtype,
        bytes=PlannedBytes(
            weights=memory.weights, cache=memory.kv_cache, vision=memory.vision, prompt=memory.prompt, total=memory.total
        ),
    )


def _named_size(reference: str, longest: int) -> tuple[str | None, tuple[int, int]]:
    found = _SIZE.fullmatch(reference)
    return (None, (longest, longest)) if found is None else (found[3], (int(found[1]), int(found[2])))


def _precision(dtype: str) -> Precision:
    return next(precision for precision in PRECISIONS if dtype in precision.dtypes)
