"""Streaming text: the pieces join to decode(), and nothing that was shown is ever taken back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

import mistral_tokenizer
from idefics.errors import OptionError
from idefics.processor.detokenizer import TextStream
from idefics.processor.tokenizer import Tokenizer, clean_up_spaces

MISTRAL = Tokenizer.from_folder(mistral_tokenizer.checkpoint())
BYTES = list(range(3, 259))
PUNCTUATION = [
    MISTRAL.convert_tokens_to_ids(t) for t in ("▁", "▁.", ".", "'", "s", "n", "t", "▁n", "re", "▁?", ",", "!", "▁'", "m", "▁▁")
]


def byte_level() -> Tokenizer:
    """A small tokenizer of the other kind: bytes as letters, as GPT-2's."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    backend.train_from_iterator(["Hello world, naïve 😀 日本語 the the and . ? don't"] * 3, trainer)
    backend.add_special_tokens([AddedToken("<end_of_utterance>", normalized=False)])
    return Tokenizer(backend, {"eos_token": "<end_of_utterance>"})


BYTE_LEVEL = byte_level()

mistral_ids = st.lists(
    st.one_of(
        st.integers(0, 32002), st.sampled_from(BYTES), st.sampled_from([b + 3 for b in b"\xf0\x9f\x98\x80\xc3\xa9"]),
        st.sampled_from(PUNCTUATION), st.sampled_from([0, 1, 2, 32000, 32002]),
    ),
    max_size=40,
)  # fmt: skip
byte_level_ids = st.lists(st.integers(0, len(BYTE_LEVEL) - 1), max_size=40)


def check(tokenizer: Tokenizer, ids: list[int], *, skip: bool, clean: bool) -> None:
    stream = TextStream(tokenizer, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
    shown = ""
    whole = tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=clean)
    for token_id in ids:
        shown += stream.push(token_id)
        assert whole.startswith(shown), "text was shown that a later id changed"
    assert shown + stream.finish() == whole


@settings(max_examples=300, deadline=None)
@given(ids=mistral_ids, skip=st.booleans(), clean=st.booleans())
def test_pieces_join_to_decode(ids: list[int], skip: bool, clean: bool) -> None:
    check(MISTRAL, ids, skip=skip, clean=clean)


@settings(max_examples=200, deadline=None)
@given(ids=byte_level_ids, skip=st.booleans(), clean=st.booleans())
def test_pieces_join_to_decode_for_byte_level_tokenizers(ids: list[int], skip: bool, clean: bool) -> None:
    check(BYTE_LEVEL, ids, skip=skip, clean=clean)


@pytest.mark.parametrize("tokenizer", [MISTRAL, BYTE_LEVEL], ids=["mistral", "byte-level"])
def test_long_texts(tokenizer: Tokenizer) -> None:
    ids = np.random.default_rng(0).integers(0, len(tokenizer), 2000).tolist()
    for i in range(0, 400, 7):
        ids[i : i + 4] = tokenizer.encode("😀", add_special_tokens=False)[-4:]
    check(tokenizer, ids, skip=True, clean=False)


@pytest.mark.parametrize("tokenizer", [MISTRAL, BYTE_LEVEL], ids=["mistral", "byte-level"])
@pytest.mark.parametrize("text", ["Hello  world 🦙🦙 x", "日本語 the 👩‍👩‍👧‍👦!", "  two  ", "don't . ok ?", "a\nb\n"])
def test_real_texts_show_no_half_character(tokenizer: Tokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) + stream.finish() == text


def test_words_are_shown_at_once() -> None:
    stream = TextStream(MISTRAL)
    ids = MISTRAL.encode("The quick brown fox", add_special_tokens=False)
    assert [stream.push(i) for i in ids] == ["The", " quick", " brown", " f", "ox"]
    assert stream.finish() == ""


@pytest.mark.parametrize("tokenizer", [MISTRAL, BYTE_LEVEL], ids=["mistral", "byte-level"])
@pytest.mark.parametrize("text", [" the fox" * 20, "😀 the", "\nthe", ". the"])
def test_inside_a_text_a_first_space_is_shown(tokenizer: Tokenizer, text: str) -> None:
    first, *ids = tokenizer.encode(f"a{text}", add_special_tokens=False)
    assert tokenizer.decode([first]) == "a"
    stream = TextStream(tokenizer, inside=True)
    assert "".join(map(stream.push, ids)) + stream.finish() == text


def test_a_list_of_ids_is_pushed_like_its_ids() -> None:
    ids = MISTRAL.encode("Hello 😀 world")
    stream = TextStream(MISTRAL)
    assert stream.push(ids[:4]) + stream.push(ids[4:]) + stream.push([]) + stream.finish() == "Hello 😀 world"


def test_unfinished_character_is_shown_only_at_the_end() -> None:
    stream = TextStream(MISTRAL)
    assert stream.push([0xF0 + 3, 0x9F + 3]) == ""
    assert stream.finish() == "\ufffd\ufffd"


def test_one_bad_byte_spoils_its_run_so_the_run_is_held() -> None:
    """decode() of a whole emoji and a stray byte is five U+FFFD: the emoji must not have been shown before."""
    ids = [b + 3 for b in "😀".encode()] + [0xE2 + 3]
    stream = TextStream(MISTRAL)
    assert stream.push(ids[:4]) == ""
    assert stream.push(ids[4:]) + stream.finish() == MISTRAL.decode(ids) == "\ufffd" * 5


def stopped(text: str, stop: str | list[str]) -> tuple[str, str | None, list[str]]:
    stream = TextStream(MISTRAL, stop=stop)
    pieces = [stream.push(i) for i in MISTRAL.encode(text)] + [stream.finish()]
    assert stream.push(5) == stream.finish() == "" or stream.stopped is None
    return "".join(pieces), stream.stopped, pieces


def test_stop_strings() -> None:
    assert stopped("Yes. Question: why", "Question")[:2] == ("Yes. ", "Question")
    assert stopped("Yes. Quest", "Question")[:2] == ("Yes. Quest", None)
    assert stopped("a b c", ["c", "b"])[:2] == ("a ", "b")
    assert stopped("abcd", ["bcd", "bc"])[:2] == ("a", "bc")
    assert stopped("abcd", ["c", "abc"])[:2] == ("", "abc")
    assert stopped("abcd", ["c", "abcd"])[:2] == ("ab", "c")
    assert stopped("aaab", "aab")[:2] == ("a", "aab")
    assert stopped("x\n\ny", "\n\n")[:2] == ("x", "\n\n")
    assert stopped("no stop", [])[:2] == ("no stop", None)


@settings(max_examples=200, deadline=None)
@given(text=st.text("ab c😀", max_size=25), stop=st.lists(st.text("ab c😀", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_where_they_would_in_the_whole_text(text: str, stop: list[str]) -> None:
    whole = MISTRAL.decode(MISTRAL.encode(text), skip_special_tokens=True)
    _, at, first = min(((whole.find(s) + len(s), whole.find(s), s) for s in stop if s in whole), default=(0, len(whole), None))
    shown, which, pieces = stopped(text, stop)
    assert (shown, which) == (whole[:at], first)
    at_once = TextStream(MISTRAL, stop=stop)
    assert at_once.push(MISTRAL.encode(text)) + at_once.finish() == shown
    assert all(whole.startswith("".join(pieces[:n])) for n in range(len(pieces) + 1))


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(OptionError, match="empty"):
        TextStream(MISTRAL, stop=["x", ""])


class Naive(TextStream):
    """The mutation: shows whatever is decoded at once."""

    def _is_byte(self, _token_id: int) -> bool:
        return False


def test_mutation_without_holding_back_bytes_is_caught() -> None:
    ids = [b + 3 for b in "é".encode()] + [0xE2 + 3]
    stream = Naive(MISTRAL)
    assert "".join(stream.push(i) for i in ids) + stream.finish() != MISTRAL.decode(ids)


def test_clean_up_matches_the_decoder() -> None:
    assert clean_up_spaces("do n't stop . It 's \" ok \" , is n't it ? we 've") == "don't stop. It's \" ok \", isn't it? we've"
