"""A thin shell over `tokenizers`: what the published tokenizer folders say, and nothing of our own.

The truth is `tokenizer.json`, read as the legacy Llama fast tokenizer of 2024 reads it: text after a special token
starts a segment of its own, so `<fake_token_around_image>In` gives `▁In` without any space being inserted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, processors
from tokenizers import Tokenizer as Backend

from idefics.config.json_files import write_json
from idefics.config.whole_files import read_whole
from idefics.errors import CheckpointNotFound, ConfigError, InputError, OptionError
from idefics.processor.batch import BatchFeature
from idefics.processor.call_options import check_left_over
from idefics.processor.characters import require_characters
from idefics.processor.described import Described
from idefics.processor.literal import MARK, reader_of, require_readable
from idefics.processor.tokenizer_settings import NAMED, added_tokens, text_of, tokenizer_settings

__all__ = ["Tokenizer", "clean_up_spaces"]

_LLAMA = ("LlamaTokenizer", "LlamaTokenizerFast")
_OPTIONS = ("add_special_tokens", "padding", "truncation", "max_length", "return_tensors", "padding_side")
_ENDLESS = 10**20  # above it `model_max_length` says "none", as the reference writes it
_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


class Tokenizer(Described):
    """Text to ids and back.

    Args:
        backend: the rules and the vocabulary.
        config: content of `tokenizer_config.json`; special tokens, `padding_side`, `add_bos_token`, ...

    Attributes:
        backend: the `tokenizers.Tokenizer`.
        padding_side: `"left"` or `"right"`; may be set.
        truncation_side: which end is cut.
        model_max_length: None if the files name none.
        clean_up_tokenization_spaces: whether `decode` removes spaces before punctuation by default.
    """

    def __init__(self, backend: Backend, config: Mapping[str, Any] | None = None) -> None:
        self.backend = backend
        self.config: dict[str, Any] = dict(config or {})
        self._source: str | None = None
        llama = self.config.get("tokenizer_class") in _LLAMA
        self.padding_side: str = _side(self.config, "padding_side", "left" if llama else "right")
        self.truncation_side: str = _side(self.config, "truncation_side", "right")
        limit = self.config.get("model_max_length")
        self.model_max_length: int | None = int(limit) if limit is not None and limit < _ENDLESS else None
        self.clean_up_tokenization_spaces: bool = bool(self.config.get("clean_up_tokenization_spaces", False))
        self.special_tokens: dict[str, str] = {}
        for name in NAMED:
            if self.config.get(name) is None and llama and name != "pad_token":
                self.config[name] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}[name]
            if self.config.get(name) is not None:
                self.special_tokens[name] = text_of(self.config[name])
        self._add_tokens()
        backend.no_truncation()
        backend.no_padding()
        if llama:
            self._llama_post_processor()

    @classmethod
    def from_folder(cls, folder: Path, *, padding_side: str | None = None) -> Tokenizer:
        """Reads `tokenizer.json` with the files beside it, of either era.

        Raises:
            CheckpointNotFound: no `tokenizer.json`.
            ConfigError: files that contradict each other.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointNotFound(f"{path} does not exist; a tokenizer folder has a tokenizer.json")
        try:
            source = read_whole(path).decode("utf-8")
            backend = Backend.from_str(source)
        except Exception as error:  # tokenizers raises a bare Exception
            raise ConfigError(f"{path} is not a readable tokenizer: {error}") from None
        config, added = tokenizer_settings(folder), added_tokens(folder)
        listed = set(_contents(config.get("additional_special_tokens")))
        for token, token_id in added.items():
            if backend.token_to_id(token) is None:
                add = backend.add_special_tokens if token in listed else backend.add_tokens
                add([AddedToken(token, normalized=False)])
            if backend.token_to_id(token) != token_id:
                raise ConfigError(
                    f"{folder / 'added_tokens.json'} gives {token!r} the id {token_id}, tokenizer.json "
                    f"{backend.token_to_id(token)}"
                )
        if padding_side is not None:
            config["padding_side"] = padding_side
        tokenizer = cls(backend, config)
        tokenizer._source = None if added else source
        return tokenizer

    @property
    def model_input_names(self) -> list[str]:
        """What calls return."""
        return ["input_ids", "attention_mask"]

    def to_dict(self) -> dict[str, Any]:
        """The content of a `tokenizer_config.json`."""
        return {"tokenizer_class": "PreTrainedTokenizerFast", **self.config, "padding_side": self.padding_side}

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> list[str]:
        """Writes the tokenizer's own files, and returns their paths.

        Raises:
            OptionError: an option that asks for more than that.
        """
        check_left_over("save_pretrained", options, there=("save_directory",))
        self.save(Path(save_directory))
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        return [str(Path(save_directory) / name) for name in names]

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`, which transformers loads."""
        folder.mkdir(parents=True, exist_ok=True)
        source = self._source if self._source is not None else _portable(self.backend.to_str())
        (folder / "tokenizer.json").write_text(source, encoding="utf-8")
        config = self.to_dict()
        config.pop("chat_template", None)  # the processor writes it, once
        config["clean_up_tokenization_spaces"] = self.clean_up_tokenization_spaces
        if config["tokenizer_class"] in _LLAMA:
            config.setdefault("legacy", True)  # what 4.40 takes files without it for, and 5 does not
        write_json(folder / "tokenizer_config.json", config)
        names = (*NAMED, "additional_special_tokens")
        write_json(folder / "special_tokens_map.json", {name: config[name] for name in names if config.get(name) is not None})

    def encode(
        self, text: str, *, add_special_tokens: bool = True, truncation: bool = False, max_length: int | None = None
    ) -> list[int]:
        """The ids of one text.

        Args:
            text: any text; special tokens in it are recognised, but for those of `Processor.chat_prompt` that are text.
            add_special_tokens: add what the tokenizer begins or ends a text with (`<s>`).
            truncation: cut to `max_length`, special tokens included.
            max_length: in tokens; None takes the tokenizer's own limit, if it has one.
        """
        if not isinstance(text, str):
            raise InputError(f"a text is due, not {type(text).__name__}")
        limit = max_length if max_length is not None else self.model_max_length
        if not truncation or limit is None:
            return list(self.read(text, add_special_tokens=add_special_tokens).ids)
        extra = self.backend.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0
        if limit <= extra:
            raise OptionError(f"max_length = {limit} leaves no room beside {extra} special token(s)")
        encoding = self.read(text, add_special_tokens=False)
        encoding.truncate(limit - extra, direction=self.truncation_side)
        return list(self.backend.post_process(encoding, None, add_special_tokens).ids)

    def read(self, text: str, *, add_special_tokens: bool = True) -> Encoding:
        """The tokens of one text with their places in it; marks in it are read as `idefics.processor.literal` says."""
        require_readable(text, self.backend)
        if MARK in text:
            reader, text = reader_of(self.backend, text)
            return reader.encode(text, add_special_tokens=add_special_tokens)
        return self.backend.encode(text, add_special_tokens=add_special_tokens)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        padding_side: str | None = None,
        **options: Any,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` of a text or a list of texts.

        Args:
            text: one text (flat lists come back, unless tensors are asked for) or several.
            add_special_tokens: as in `encode`.
            padding: False, True or `"longest"`, or `"max_length"`.
            truncation: as in `encode`.
            max_length: limit of truncation and length of `padding="max_length"`.
            return_tensors: `"pt"`, `"np"` or None for lists.
            padding_side: `"left"` or `"right"` for this call.
            options: of the reference, where they ask for nothing (`return_token_type_ids=False`, ...).
        """
        check_left_over("tokenizer", options, there=_OPTIONS)
        texts = [text] if isinstance(text, str) else list(text)
        rows = [
            self.encode(one, add_special_tokens=add_special_tokens, truncation=truncation, max_length=max_length)
            for one in texts
        ]
        batch = self.pad(rows, padding=padding, max_length=max_length, padding_side=padding_side, return_tensors=return_tensors)
        if isinstance(text, str) and return_tensors is None:
            return BatchFeature({key: value[0] for key, value in batch.items()})
        return batch

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        *,
        padding: bool | str = True,
        max_length: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` of rows of ids, padded as `__call__` describes."""
        side = padding_side or self.padding_side
        _side({"padding_side": side}, "padding_side", side)
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise OptionError(f"padding = {padding!r} is not one of True, False, 'longest', 'max_length'")
        ids, mask = [list(row) for row in rows], [[1] * len(row) for row in rows]
        if padding not in (False, "do_not_pad"):
            limit = max_length if max_length is not None else self.model_max_length
            if padding == "max_length" and limit is None:
                raise OptionError("padding = 'max_length' needs max_length")
            width = limit if padding == "max_length" and limit else max((len(row) for row in ids), default=0)
            missing = [width - len(row) for row in ids]
            pad_id = self.pad_token_id
            if max(missing, default=0) > 0 and pad_id is None:
                raise InputError("the tokenizer has no pad_token, so texts of several lengths cannot be padded")
            ids = [_pad(row, pad_id or 0, n, side) for row, n in zip(ids, missing, strict=True)]
            mask = [_pad(row, 0, n, side) for row, n in zip(mask, missing, strict=True)]
        return BatchFeature(
            {key: _tensor(value, return_tensors) for key, value in (("input_ids", ids), ("attention_mask", mask))}
        )

    def decode(
        self, token_ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """The text of ids: an int, a list, an array or a tensor of one dimension."""
        text: str = self.backend.decode(_ids(token_ids), skip_special_tokens=skip_special_tokens)
        clean = self.clean_up_tokenization_spaces if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        return clean_up_spaces(text) if clean else text

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """The text of each row of `sequences`."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in sequences]

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a token, or a list of ids of several; an unknown token gets the id of `unk_token`."""
        if isinstance(tokens, str):
            require_characters(tokens, "a token")
            found = self.backend.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> Any:
        """The token of an id, or a list of tokens; None for an id outside the vocabulary."""
        if isinstance(ids, int):
            return self.backend.id_to_token(ids)
        return [self.backend.id_to_token(i) for i in _ids(ids)]

    def get_vocab(self) -> dict[str, int]:
        """Every token, added ones included, with its id."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    def __len__(self) -> int:
        """Size of the vocabulary with added tokens."""
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary without added tokens; `len(tokenizer)` counts those too."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids that `skip_special_tokens` leaves out."""
        return sorted(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @property
    def bos_token(self) -> str | None:
        """Begins a text, or None."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Ends a text, or None."""
        return self.special_tokens.get("eos_token")

    @property
    def unk_token(self) -> str | None:
        """Stands for unknown text, or None."""
        return self.special_tokens.get("unk_token")

    @property
    def pad_token(self) -> str | None:
        """Fills rows, or None."""
        return self.special_tokens.get("pad_token")

    @property
    def bos_token_id(self) -> int | None:
        """Id of `bos_token`."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of `eos_token`."""
        return self._named_id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        """Id of `unk_token`."""
        return self._named_id("unk_token")

    @property
    def pad_token_id(self) -> int | None:
        """Id of `pad_token`."""
        return self._named_id("pad_token")

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def _add_tokens(self) -> None:
        """Adds what the files list and `tokenizer.json` lacks; never a token that no file names."""
        known = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        for token_id, entry in sorted((self.config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0])):
            token = text_of(entry)
            if token not in known:
                flags = {key: bool(entry[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in entry}
                self._add(AddedToken(token, **flags), special=bool(entry.get("special")))
                known.add(token)
            if self.backend.token_to_id(token) != int(token_id):
                actual = self.backend.token_to_id(token)
                raise ConfigError(f"tokenizer_config.json gives {token!r} the id {token_id}, tokenizer.json {actual}")
        additional = self.config.get("additional_special_tokens") or self.config.get("extra_special_tokens")
        for token in (*self.special_tokens.values(), *_contents(additional)):
            if token not in known:
                self._add(AddedToken(token, normalized=False), special=True)
                known.add(token)

    def _add(self, token: AddedToken, *, special: bool) -> None:
        if special:
            self.backend.add_special_tokens([token])
        else:
            self.backend.add_tokens([token])

    def _llama_post_processor(self) -> None:
        """`add_bos_token` and `add_eos_token` of the config rule, whatever `tokenizer.json` says: as in 2024."""
        bos = self.bos_token if self.config.get("add_bos_token", True) else None
        eos = self.eos_token if self.config.get("add_eos_token", False) else None
        single = " ".join(part for part in (bos and f"{bos}:0", "$A:0", eos and f"{eos}:0") if part)
        pair = " ".join(part for part in (bos and f"{bos}:1", "$B:1", eos and f"{eos}:1") if part)
        tokens = [(token, self.backend.token_to_id(token)) for token in (bos, eos) if token]
        self.backend.post_processor = processors.TemplateProcessing(
            single=single, pair=f"{single} {pair}", special_tokens=tokens
        )


def clean_up_spaces(text: str) -> str:
    """Removes the spaces before English punctuation and contractions, as the reference's clean-up does."""
    for spaced, tight in _CLEAN_UP:
        text = text.replace(spaced, tight)
    return text


def _contents(tokens: Any) -> list[str]:
    """Texts of tokens that a file lists, or gives names."""
    return [text_of(token) for token in (tokens.values() if isinstance(tokens, Mapping) else tokens or ())]


def _side(config: Mapping[str, Any], name: str, default: str) -> str:
    side = default if config.get(name) is None else config[name]
    if side not in ("left", "right"):
        raise OptionError(f"{name} = {side!r} is not 'left' or 'right'")
    return str(side)


def _portable(source: str) -> str:
    """`tokenizer.json` with merges as `"a b"`, which every release of tokenizers reads, if no token holds a space."""
    content = json.loads(source)
    merges = content.get("model", {}).get("merges") or []
    if all(isinstance(pair, list) and not any(" " in part for part in pair) for pair in merges):
        content["model"]["merges"] = [" ".join(pair) for pair in merges]
    return json.dumps(content, indent=2, ensure_ascii=False)


def _pad(row: list[int], value: int, count: int, side: str) -> list[int]:
    return [value] * count + row if side == "left" else row + [value] * count


def _ids(token_ids: Any) -> list[int]:
    if hasattr(token_ids, "tolist"):
        token_ids = token_ids.tolist()
    return [token_ids] if isinstance(token_ids, int) else [int(i) for i in _iterable(token_ids)]


def _iterable(token_ids: Any) -> Iterable[Any]:
    if not isinstance(token_ids, Iterable) or isinstance(token_ids, str):
        raise InputError(f"token ids are due, not {token_ids!r}")
    return token_ids


def _tensor(rows: list[list[int]], kind: str | None) -> Any:
    if kind is None:
        return rows
    if kind not in ("pt", "np"):
        raise OptionError(f"return_tensors = {kind!r} is not one of 'pt', 'np', None")
    if len({len(row) for row in rows}) > 1:
        raise InputError("rows of several lengths make no tensor; use padding=True")
    if kind == "np":
        import numpy as np

        return np.array(rows, dtype=np.int64)
    import torch

    return torch.tensor(rows, dtype=torch.int64)
