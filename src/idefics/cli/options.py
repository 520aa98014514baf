"""Options that several commands share: dataclasses whose fields become the command's options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from typer import Option

from idefics.cli.streams import as_text
from idefics.config.json_files import parse_json
from idefics.errors import OptionError

__all__ = ["ImageOptions", "ModelOptions", "SamplingOptions", "ShotOptions", "spread"]

_MODEL, _IMAGES, _SHOTS, _ANSWER = "Model", "Images", "Examples", "Answer"


def _option(*names: str, help: str, panel: str, **more: Any) -> Any:
    return Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: Annotated[
        str | None, _option("--model", "-m", help="Folder or Hub id; left out: the embedded model.", panel=_MODEL)
    ] = None
    revision: Annotated[str | None, _option("--revision", help="Branch, tag or commit of a Hub id.", panel=_MODEL)] = None
    cache_dir: Annotated[
        str | None, _option("--cache-dir", help="Where downloads are kept; left out: the Hub's own folder.", panel=_MODEL)
    ] = None
    token: Annotated[str | None, _option("--token", help="For gated or private models.", panel=_MODEL)] = None
    offline: Annotated[bool, _option("--offline", help="Use only what is downloaded already.", panel=_MODEL)] = False
    dtype: Annotated[
        str | None, _option("--dtype", help="float32, bfloat16 or float16; left out: as stored.", panel=_MODEL)
    ] = None
    device: Annotated[
        str | None, _option("--device", help="cpu, cuda, cuda:1, ...; left out: the first GPU, or the CPU.", panel=_MODEL)
    ] = None
    threads: Annotated[
        int | None,
        _option("--threads", help="CPU threads for the model; left out: torch's choice.", panel=_MODEL, min=1),
    ] = None
    device_map: Annotated[
        str | None, _option("--device-map", help="'auto' spreads the model over all GPUs; or a JSON object.", panel=_MODEL)
    ] = None

    allow_unknown_config: Annotated[
        bool,
        _option(
            "--allow-unknown-config",
            help="Take a model whose JSON files ask for something unknown, as if they did not; warns.",
            panel=_MODEL,
        ),
    ] = False

    def naming(self, checkpoint: str | None) -> ModelOptions:
        """The same with the model that a command's MODEL names, if it does.

        Raises:
            OptionError: it is named twice.
        """
        if checkpoint is None:
            return self
        if self.model is not None:
            raise OptionError(f"MODEL {checkpoint!r} and --model {self.model!r} are both given; give one")
        return dataclasses.replace(self, model=checkpoint)

    def placement(self) -> str | Mapping[str, Any] | None:
        """The device map as `load` takes it.

        Raises:
            OptionError: not `auto`, a device or a JSON object.
        """
        if self.device_map is None or not self.device_map.lstrip().startswith("{"):
            return self.device_map
        try:
            found: Mapping[str, Any] = parse_json(self.device_map)
        except ValueError as error:
            raise OptionError(f"--device-map is not valid JSON: {error}") from None
        return found


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How large images are seen."""

    split: Annotated[
        bool | None,
        _option("--split/--no-split", help="See each image as four quarters and the whole, or whole only.", panel=_IMAGES),
    ] = None
    max_image_size: Annotated[
        int | None, _option("--max-image-size", help="Longest edge in pixels; smaller is faster.", panel=_IMAGES, min=1)
    ] = None
    image_size: Annotated[
        int | None,
        _option("--image-size", help="First generation: side of the squares, other than the model's.", panel=_IMAGES, min=1),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ShotOptions:
    """Examples before the question."""

    shots: Annotated[
        str | None,
        _option("--shots", help="Examples: JSON objects with image(s), question and answer, a line each.", panel=_SHOTS),
    ] = None
    shots_k: Annotated[int | None, _option("--shots-k", help="How many of them; left out: all.", panel=_SHOTS, min=1)] = None
    shots_by: Annotated[
        str | None,
        _option("--shots-by", help="order, random (with --seed) or nearest (by image); left out: order.", panel=_SHOTS),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How answers are chosen; what is left out is as the checkpoint says. `--temperature 0` means greedy."""

    max_new_tokens: Annotated[int | None, _option("--max-new-tokens", help="Length of the answer at most.", panel=_ANSWER)] = (
        None
    )
    temperature: Annotated[
        float | None, _option("--temperature", help="Draw at random, the wilder the higher; 0 never draws.", panel=_ANSWER)
    ] = None
    top_p: Annotated[
        float | None, _option("--top-p", help="Draw from the likeliest tokens that reach this probability.", panel=_ANSWER)
    ] = None
    top_k: Annotated[int | None, _option("--top-k", help="Draw from this many of the likeliest tokens.", panel=_ANSWER)] = None
    typical_p: Annotated[
        float | None, _option("--typical-p", help="Draw from the most typical tokens that reach this.", panel=_ANSWER)
    ] = None
    min_p: Annotated[
        float | None, _option("--min-p", help="Draw from tokens this likely relative to the likeliest.", panel=_ANSWER)
    ] = None
    repetition_penalty: Annotated[
        float | None, _option("--repetition-penalty", help="Above 1 discourages tokens seen before.", panel=_ANSWER)
    ] = None
    frequency_penalty: Annotated[
        float | None, _option("--frequency-penalty", help="Discourages per occurrence in the answer.", panel=_ANSWER)
    ] = None
    presence_penalty: Annotated[
        float | None, _option("--presence-penalty", help="Discourages what the answer already has.", panel=_ANSWER)
    ] = None
    no_repeat_ngram_size: Annotated[
        int | None, _option("--no-repeat-ngram-size", help="No sequence of this many tokens twice.", panel=_ANSWER)
    ] = None
    seed: Annotated[int | None, _option("--seed", help="The same seed draws the same answer.", panel=_ANSWER)] = None
    stop: Annotated[list[str] | None, _option("--stop", help="End the answer before this text; repeatable.", panel=_ANSWER)] = (
        None
    )
    num_beams: Annotated[int | None, _option("--num-beams", help="Beam search with this many beams.", panel=_ANSWER)] = None
    prompt_lookup_num_tokens: Annotated[
        int | None,
        _option(
            "--prompt-lookup",
            help="Guess this many tokens from the text so far; the same answer, sooner where it repeats.",
            panel=_ANSWER,
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """What was asked for, as keyword arguments of `generate`."""
        asked = {name: value for name, value in vars(self).items() if value is not None and value != []}
        if self.stop:
            asked["stop"] = [as_text(stop, "--stop") for stop in self.stop]
        return asked


def spread(function: Callable[..., None]) -> Callable[..., None]:
    """A function whose parameters of the types above are replaced by their fields, as typer wants them."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, type[Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kind))
            continue
        assert isinstance(kind, type)
        groups[name] = kind
        field_hints = get_type_hints(kind, include_extras=True)
        for field in dataclasses.fields(kind):
            annotation = field_hints[field.name]
            parameters.append(
                inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)
            )

    @functools.wraps(function)
    def call(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
        function(**values)

    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call
