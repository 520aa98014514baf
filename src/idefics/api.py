"""The facade that people use: a model one can ask.

import idefics
model = idefics.load()                      # the embedded model; or a folder, or "HuggingFaceM4/idefics2-8b"
model.generate("What is this?", images="photo.jpg")
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, overload

import torch

from idefics.asking.answers import Answer, Score, as_asked
from idefics.asking.question import prompt_of
from idefics.asking.text import AnswerText, stop_checks, text_of
from idefics.assets import EMBEDDED, EMBEDDED_NAME
from idefics.config.keys import Keys, shown
from idefics.engine.defaults import generation_defaults
from idefics.engine.engine import Engine
from idefics.engine.limits import Limits
from idefics.engine.request import Completion, Token
from idefics.engine.sampling_params import SamplingParams, sampling_params
from idefics.errors import InputError, OptionError
from idefics.inputs import ModelInputs
from idefics.machine.progress import Progress
from idefics.model.base import VisionLanguageModel
from idefics.model.layers.attention import Backend
from idefics.parallel.load import load_placed
from idefics.processor.base import Processor
from idefics.processor.characters import require_characters
from idefics.processor.families import load_processor
from idefics.processor.messages import fill_images, normalise
from idefics.weights.dtype import torch_dtype
from idefics.weights.files import resolve
from idefics.weights.packing import pack_loaded

__all__ = ["EMBEDDED", "Answer", "Idefics", "Score", "load"]

Prompts = list[str] | tuple[str, ...]
Messages = Sequence[Mapping[str, Any]]


def load(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    offline: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    tensor_parallel: int | None = None,
    attention: Backend = "auto",
    packed: bool | None = None,
    limits: Limits | None = None,
    max_image_size: int | None = None,
    image_size: int | None = None,
    split: bool | None = None,
    allow_unknown_config: bool = False,
    progress: Progress | None = None,
) -> Idefics:
    """Loads a model and its processor.

    Args:
        model: a folder in the published layout, a Hub id, or None (or `"idefics2-nano"`) for the embedded model.
        revision: of a Hub id: branch, tag or commit.
        cache_dir: where Hub files are kept.
        token: for gated or private repositories.
        offline: use only what is already downloaded.
        dtype: of the weights, a name or a torch dtype; None keeps the stored one, but bfloat16 for a family that overflows.
        device: where to run; None takes the first GPU if there is one.
        device_map: `"auto"` spreads the model over all GPUs; a mapping from parameter prefixes to devices does as it says.
        tensor_parallel: divide every layer over this many processes, which `torchrun` starts; each loads its part, and all
            must make the same calls. `device` is a kind then, `"cpu"` or `"cuda"`.
        attention: implementation, see `model/layers/attention.py`.
        limits: how much the engine takes on at once, and how large its caches may be.
        packed: arrange the weights for where they are (on a GPU, join layers that share their input), after which the model
            only infers; None does where it pays. On a CPU the work is done when a part of the model is first used, see
            `idefics.linears.packing.finish_packing`; up to then the files must stay as they are.
        max_image_size: longest edge of images in pixels; None keeps the checkpoint's.
        image_size: side in pixels of the squares in which a model of the first generation sees images, for which its
            positions are interpolated; None keeps the checkpoint's.
        split: cut images in four sub-images and the whole; None keeps the checkpoint's setting.
        allow_unknown_config: take a model whose `config.json`, image settings or `generation_config.json` have keys that ask
            for something this version does not know, as if they were not there, with a warning that names them; they stand
            in `Idefics.unknown`.
        progress: told (bytes read, bytes in all) while weights are read.

    Raises:
        IdeficsError: see `idefics.errors`.
    """
    stored = torch_dtype(dtype)
    if attention not in get_args(Backend):
        raise OptionError(f"attention = {attention!r} is not one of {', '.join(get_args(Backend))}")
    keys = Keys(allow_unknown=allow_unknown_config)
    folder = resolve(model, revision=revision, cache_dir=cache_dir, token=token, offline=offline, progress=sys.stderr.isatty())
    processor = load_processor(folder, keys=keys).adjusted(max_image_size=max_image_size, split=split)
    if image_size is not None:
        processor = processor.sized(image_size)
    loaded = load_placed(
        folder,
        dtype=stored,
        device=device,
        device_map=device_map,
        tensor_parallel=tensor_parallel,
        backend=attention,
        progress=progress,
        allow_unknown=allow_unknown_config,
    )
    pack_loaded(loaded, packed)
    defaults = generation_defaults(folder, loaded.config, keys=keys)
    if keys.passed:
        warnings.warn(f"{folder}: taken as if its files did not say {shown(keys.passed)}", UserWarning, stacklevel=2)
    return Idefics(str(model or EMBEDDED_NAME), loaded, processor, defaults, limits, unknown=keys.passed)


class Idefics:
    """A model one can ask. Made by `load`.

    Attributes:
        name: as given to `load`.
        model: the network.
        processor: texts and images to inputs.
        engine: generates.
        defaults: content of the checkpoint's `generation_config.json`.
        unknown: keys of the checkpoint's files that ask for what nobody here knows, with their values; they were let pass.
    """

    def __init__(
        self,
        name: str,
        model: VisionLanguageModel,
        processor: Processor,
        defaults: Mapping[str, Any],
        limits: Limits | None = None,
        *,
        unknown: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.processor = processor
        self.engine = Engine(model, limits)
        self.defaults = dict(defaults)
        self.unknown = {**model.config.unknown, **(unknown or {})}

    @overload
    def generate(
        self, prompt: str, images: Any = None, *, details: Literal[False] = False, n: None = None, **options: Any
    ) -> str: ...

    @overload
    def generate(
        self, prompt: str, images: Any = None, *, details: Literal[True], n: None = None, **options: Any
    ) -> Answer: ...

    @overload
    def generate(
        self, prompt: Prompts, images: Any = None, *, details: Literal[False] = False, n: None = None, **options: Any
    ) -> list[str]: ...

    @overload
    def generate(
        self, prompt: Prompts, images: Any = None, *, details: Literal[True], n: None = None, **options: Any
    ) -> list[Answer]: ...

    @overload
    def generate(
        self, prompt: str | Sequence[str], images: Any = None, *, details: bool = False, n: int | None = None, **options: Any
    ) -> Any: ...

    def generate(
        self,
        prompt: str | Sequence[str],
        images: Any = None,
        *,
        raw: bool | None = None,
        details: bool = False,
        n: int | None = None,
        max_image_size: int | None = None,
        split: bool | None = None,
        **options: Any,
    ) -> Any:
        """Answers a question about images, or continues a prompt.

        An answer ends by itself, or after 512 tokens where neither `max_new_tokens` nor the checkpoint says otherwise (20 in
        the Hugging Face library). What is drawn without `seed` obeys `torch.manual_seed`.

        Args:
            prompt: one or several. A prompt that holds `<image>` is taken as it is; another is put to the model as a user's
                turn after its images (chat models), or right after its images (base models). In a turn special tokens are
                text; in a prompt that is taken as it is they are read as such.
            images: for one prompt an image or a list; for several, a list of lists. Path, URL, data URL, bytes, open file,
                `{"bytes": ..., "path": ...}`, PIL or numpy.
            raw: True never applies the chat template, False always does; None decides as said.
            details: return `Answer` instead of text.
            n: answers per prompt; where it is given, and is not 1, a list of them comes back.
            max_image_size: longest edge in pixels for this call.
            split: cut images in sub-images for this call.
            options: see `SamplingParams`; `max_new_tokens`, `temperature`, `seed`, `stop`, `n`, ...

        Returns:
            A text; a list where several prompts or `n > 1` answers were asked for (a list of lists for both); `Answer`
            instead of each text with `details`.

        Raises:
            InputError: prompt, images or options cannot be used.
        """
        params = sampling_params(self.defaults, {**options, "n": n})
        if not isinstance(prompt, Sequence):
            raise InputError(f"a prompt is a text or a list of texts, not {type(prompt).__name__}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        rows = _rows(images, prompts, single=isinstance(prompt, str))
        texts = [self._prompt(text, len(row), raw) for text, row in zip(prompts, rows, strict=True)]
        inputs = self._inputs(texts, rows, max_image_size=max_image_size, split=split)
        answers = [as_asked(row, details=details, several=params.n > 1) for row in self._answers(inputs, params)]
        return answers[0] if isinstance(prompt, str) else answers

    def stream(
        self,
        prompt: str,
        images: Any = None,
        *,
        raw: bool | None = None,
        max_image_size: int | None = None,
        split: bool | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """As `generate` with one prompt, but yields pieces of text as they become certain, never half a character."""
        row = _rows(images, [prompt], single=True)[0]
        inputs = self._inputs([self._prompt(prompt, len(row), raw)], [row], max_image_size=max_image_size, split=split)
        return self._pieces(inputs, options)

    @overload
    def chat(
        self, messages: Messages, images: Any = None, *, details: Literal[False] = False, n: None = None, **options: Any
    ) -> str: ...

    @overload
    def chat(
        self, messages: Messages, images: Any = None, *, details: Literal[True], n: None = None, **options: Any
    ) -> Answer: ...

    @overload
    def chat(
        self, messages: Messages, images: Any = None, *, details: bool = False, n: int | None = None, **options: Any
    ) -> Any: ...

    def chat(
        self,
        messages: Messages,
        images: Any = None,
        *,
        details: bool = False,
        n: int | None = None,
        max_image_size: int | None = None,
        split: bool | None = None,
        **options: Any,
    ) -> Any:
        """The assistant's next turn.

        Args:
            messages: as for the chat template; an image part may carry its image:
                `{"type": "image", "image": PIL, path or URL}`. Special tokens in texts are text, and so is `<image>`.
            images: for image parts that carry none, in order.
            details: return `Answer` instead of text.
            n: as in `generate`.
            max_image_size: as in `generate`.
            split: as in `generate`.
            options: as in `generate`.

        Raises:
            TemplateError: the messages are not usable, or the checkpoint has no chat template.
        """
        params = sampling_params(self.defaults, {**options, "n": n})
        inputs = self._chat_inputs(messages, images, max_image_size=max_image_size, split=split)
        return as_asked(self._answers(inputs, params)[0], details=details, several=params.n > 1)

    def stream_chat(
        self,
        messages: Messages,
        images: Any = None,
        *,
        max_image_size: int | None = None,
        split: bool | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """As `chat`, but yields pieces of text as they become certain."""
        return self._pieces(self._chat_inputs(messages, images, max_image_size=max_image_size, split=split), options)

    def score(
        self,
        prompt: str,
        continuations: Sequence[str],
        images: Any = None,
        *,
        raw: bool | None = None,
        max_image_size: int | None = None,
        split: bool | None = None,
    ) -> list[Score]:
        """Log-probabilities of given continuations of a prompt; images and prompt are computed once for all.

        Args:
            prompt: as in `generate`.
            continuations: texts; a space before a word belongs to the continuation, as in `" red"`.
            images: as in `generate`.
            raw: as in `generate`.
            max_image_size: as in `generate`.
            split: as in `generate`.

        Raises:
            InputError: a continuation adds no token to the prompt, or holds a place for an image.
        """
        if isinstance(continuations, str):
            raise InputError("continuations must be a list of texts, not one text")
        if any(self.processor.image_token in continuation for continuation in continuations):
            raise InputError(f"a continuation holds {self.processor.image_token}; images belong to the prompt")
        for continuation in continuations:
            require_characters(continuation, "a continuation")
        row = _rows(images, [prompt], single=True)[0]
        text = self._prompt(prompt, len(row), raw)
        inputs = self._inputs([text], [row], max_image_size=max_image_size, split=split)
        expanded = self.processor.adjusted(split=split).expand(text)
        encoded = [self.processor.tokenizer.encode(expanded + continuation) for continuation in continuations]
        scored = self.engine.score(inputs, encoded, document_end=self.processor.tokenizer.eos_token_id)
        return [Score(logprob=sum(values), token_logprobs=tuple(values), greedy=greedy) for values, greedy in scored]

    def _prompt(self, text: str, images: int, raw: bool | None) -> str:
        return prompt_of(self.processor, text, images=images, chat=None if raw is None else not raw)

    def _inputs(
        self, texts: Sequence[str], rows: Sequence[Sequence[Any]], *, max_image_size: int | None, split: bool | None
    ) -> ModelInputs:
        return self.processor.adjusted(max_image_size=max_image_size, split=split).inputs(texts, rows)

    def _chat_inputs(self, messages: Messages, images: Any, *, max_image_size: int | None, split: bool | None) -> ModelInputs:
        given = [] if images is None else list(images) if isinstance(images, list | tuple) else [images]
        row = fill_images(normalise(messages)[1], given)
        text = self.processor.chat_prompt(messages)
        return self._inputs([text], [row], max_image_size=max_image_size, split=split)

    def _pieces(self, inputs: ModelInputs, options: Mapping[str, Any]) -> Iterator[str]:
        params = sampling_params(self.defaults, options)
        for name, value in (("num_beams", params.num_beams), ("n", params.n), ("best_of", params.best_of or 1)):
            if value > 1:
                raise OptionError(f"{name}={value} cannot be streamed; use generate")
        return self._stream(inputs, params)

    def _stream(self, inputs: ModelInputs, params: SamplingParams) -> Iterator[str]:
        tokenizer = self.processor.tokenizer
        tokens = self.engine.stream(inputs, [params], stop_checks(tokenizer, params, prompts=1))
        return _texts(tokens, AnswerText(tokenizer, stop=params.stop))

    def _answers(self, inputs: ModelInputs, params: SamplingParams) -> list[list[Answer]]:
        rows = len(inputs.input_ids_BT)
        lengths = inputs.attention_mask_BT.sum(1).tolist()
        images = (inputs.input_ids_BT == self.processor.image_token_id).sum(1).tolist()
        stops = stop_checks(self.processor.tokenizer, params, prompts=rows)
        completions = self.engine.generate(inputs, [params] * rows, stops)
        return [
            [self._answer(c, params, prompt_tokens=length, image_tokens=count) for c in row]
            for row, length, count in zip(completions, lengths, images, strict=True)
        ]

    def _answer(self, completion: Completion, params: SamplingParams, *, prompt_tokens: int, image_tokens: int) -> Answer:
        return Answer(
            text=text_of(self.processor.tokenizer, completion, params.stop),
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            top=completion.top,
            score=completion.score,
            finish=completion.finish,
            prompt_tokens=prompt_tokens,
            image_tokens=image_tokens,
        )


def _texts(tokens: Iterator[Token], text: AnswerText) -> Iterator[str]:
    """What each token adds, where it adds anything."""
    for token in tokens:
        if piece := text.push([token.id], token.finish):
            yield piece


def _rows(images: Any, prompts: Sequence[str], *, single: bool) -> list[list[Any]]:
    """Images of each prompt."""
    if images is None:
        return [[] for _ in prompts]
    if single:
        return [list(images) if isinstance(images, list | tuple) else [images]]
    if not isinstance(images, list | tuple) or len(images) != len(prompts):
        given = len(images) if isinstance(images, list | tuple) else 1
        raise InputError(f"{len(prompts)} prompts need a list of {len(prompts)} lists of images, not {given} item(s)")
    return [list(row) if isinstance(row, list | tuple) else [] if row is None else [row] for row in images]
