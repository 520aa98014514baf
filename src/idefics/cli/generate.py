"""`idefics generate`: a question, perhaps images, and nothing but the answer on stdout."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from idefics.cli.images import Attachment, attach
from idefics.cli.loading import memory_explained, open_model
from idefics.cli.options import ImageOptions, ModelOptions, SamplingOptions, ShotOptions
from idefics.cli.streams import as_text, stdin_text
from idefics.cli.terminal import introduce, one_voice, write
from idefics.engine.sampling_params import sampling_params
from idefics.errors import InputError, OptionError
from idefics.machine.dtypes import dtype_name

if TYPE_CHECKING:
    from idefics.api import Answer, Idefics
    from idefics.fewshot import Shot

__all__ = ["generate"]


@one_voice
def generate(
    question: Annotated[str, Argument(help="What to ask; - reads it from stdin.", show_default=False)],
    *,
    image: Annotated[
        list[str] | None,
        Option("--image", "-i", help="File or URL; repeatable.", rich_help_panel="Images", show_default=False),
    ] = None,
    model: ModelOptions,
    images: ImageOptions,
    shots: ShotOptions,
    sampling: SamplingOptions,
    n: Annotated[
        int | None, Option("--n", help="Answers to draw, a line each.", rich_help_panel="Answer", show_default=False)
    ] = None,
    raw: Annotated[bool, Option("--raw", help="Continue the text as it is, without the chat template.")] = False,
    as_json: Annotated[bool, Option("--json", help="Print one JSON object: answer, token counts, timings.")] = False,
    stream: Annotated[bool, Option("--stream/--no-stream", help="Print the answer while it grows.")] = True,
    tensor_parallel: Annotated[
        int | None,
        Option(
            "--tensor-parallel",
            help="Divide the model over so many processes: torchrun --nproc-per-node N -m idefics generate ...",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Ask a question about images; the answer, and nothing else, goes to stdout.

    Example: idefics generate --image photo.jpg "What is in this picture?"
    """
    began = time.perf_counter()
    options = sampling.given() | ({} if n is None else {"n": n})
    sampling_params({}, options)  # refuses before anything is read
    prompt = _words(question, shots, raw=raw, tensor_parallel=tensor_parallel)
    attached = [attach(source) for source in image or ()]
    pictures = [attachment.image for attachment in attached]
    examples = _examples(shots, pictures)
    opened = open_model(model, images, tensor_parallel=tensor_parallel)
    introduce(opened.name)
    loaded = time.perf_counter()
    request = _Request(prompt=prompt, pictures=pictures, raw=raw or None, options=options)
    request = _with_examples(opened, request, examples, shots, seed=sampling.seed)
    params = sampling_params(opened.defaults, request.options)  # the checkpoint may ask for beams or several answers itself
    with memory_explained("answering"):
        if as_json:
            answers: Any = request.answers(opened, details=True)
            seconds = {"load": loaded - began, "answer": time.perf_counter() - loaded}
            report = _report(opened, attached, answers if params.n > 1 else [answers], seconds)
            print(json.dumps(report, ensure_ascii=False))
        elif params.n > 1:
            write("\n".join(request.answers(opened)), end="\n")
        elif stream and params.num_beams == 1 and params.candidates == 1:
            _print_stream(opened, request)
        else:
            write(request.answers(opened), end="\n")


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a model is asked."""

    prompt: str
    pictures: list[Any]
    raw: bool | None
    options: dict[str, Any]

    def answers(self, model: Idefics, *, details: bool = False) -> Any:
        return model.generate(self.prompt, self.pictures, raw=self.raw, details=details, **self.options)


def _words(question: str, shots: ShotOptions, *, raw: bool, tensor_parallel: int | None) -> str:
    """The question in words, once nothing that was given contradicts another; costs no loading."""
    if shots.shots is None and (shots.shots_k, shots.shots_by) != (None, None):
        raise OptionError("--shots-k and --shots-by choose among examples; give a file with --shots")
    if shots.shots is not None and raw:
        raise OptionError("--shots writes the prompt itself and --raw takes it as it is; leave one of them out")
    if question == "-" and tensor_parallel is not None:
        raise OptionError("stdin cannot be read by several processes at once; give --tensor-parallel the question in words")
    prompt = stdin_text("the question") if question == "-" else as_text(question, "the question")
    if not prompt.strip():
        raise InputError("the question is empty")
    return prompt


def _examples(shots: ShotOptions, pictures: list[Any]) -> list[Shot]:
    """All examples of the file that was given, usable as asked; refused here, they cost no loading."""
    if shots.shots is None:
        return []
    from idefics import fewshot

    found = fewshot.read_shots(shots.shots)
    fewshot.check_choice(found, pictures, by=shots.shots_by or "order", k=shots.shots_k)
    return found


def _with_examples(
    model: Idefics, request: _Request, examples: list[Shot], shots: ShotOptions, *, seed: int | None
) -> _Request:
    """The same question, after examples if there are any."""
    place = model.processor.image_token
    if place in request.prompt and not request.raw:
        raise InputError(f"the question holds {place}, which stands for an image; leave it out, or place images with --raw")
    if not examples:
        return request
    from idefics import fewshot

    by, k = shots.shots_by or "order", shots.shots_k
    chosen = fewshot.choose(model, examples, request.pictures, by=by, k=k, seed=seed)
    prompt, pictures = fewshot.build(model, chosen, request.prompt, request.pictures)
    # Examples stand a line each where there are no turns, and the model would go on with another.
    ends = {"stop": ["\n"]} if model.processor.chat_template is None else {}
    return _Request(prompt=prompt, pictures=pictures, raw=True, options=ends | request.options)


def _print_stream(model: Idefics, request: _Request) -> None:
    pieces = model.stream(request.prompt, request.pictures, raw=request.raw, **request.options)
    started = False
    try:
        for piece in pieces:
            started = True
            write(piece)
    except BrokenPipeError:
        raise
    except BaseException:
        if started:  # what is said so far stays a line of its own
            print()
        raise
    print()


def _report(model: Idefics, attached: list[Attachment], answers: list[Answer], seconds: dict[str, float]) -> dict[str, Any]:
    first = answers[0]
    report: dict[str, Any] = {
        "answer": first.text,
        "finish": first.finish,
        "model": model.name,
        "dtype": dtype_name(model.model.dtype),
        "images": [{"source": _short(a.source), "width": a.image.width, "height": a.image.height} for a in attached],
        "tokens": {
            "prompt": first.prompt_tokens,
            "image": first.image_tokens,
            "answer": sum(len(answer.token_ids) for answer in answers),
        },
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
    }
    if len(answers) > 1:
        report["answers"] = [{"answer": a.text, "finish": a.finish, "score": a.score} for a in answers]
    return report


def _short(source: str) -> str:
    """A data URL is not repeated."""
    return source if not source.startswith("data:") else f"{source.partition(',')[0]},..."
