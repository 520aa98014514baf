"""Special tokens in a chat's texts are text; those of the template are tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, normalizers
from tokenizers import Tokenizer as Backend

import mistral_tokenizer
from fakes import END, FAKE, IMAGE, tiny_processor
from idefics.errors import InputError, TemplateError
from idefics.processor.base import Processor
from idefics.processor.idefics1 import IdeficsProcessor
from idefics.processor.idefics2 import Idefics2Processor
from idefics.processor.literal import unmarked

NAMES = ("<s>", "</s>", "<unk>", FAKE, IMAGE, END)
PLAIN = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}{% endfor %}"

pieces = st.one_of(
    st.sampled_from(NAMES), st.sampled_from(["<", ">", "<<", "/s>", "<image", "\n", " ", "a"]), st.text(max_size=8)
)
texts = st.lists(pieces, max_size=6).map("".join)


def said(*contents: str | Sequence[str]) -> list[dict[str, object]]:
    parts = [[each] if isinstance(each, str) else each for each in contents]
    return [{"role": ("user", "assistant")[i % 2], "content": list(each)} for i, each in enumerate(parts)]


def without_tokens(processor: Processor) -> Backend:
    """The same vocabulary and rules, and no special token."""
    backend = Backend(processor.tokenizer.backend.model)
    backend.normalizer = processor.tokenizer.backend.normalizer
    return backend


@given(texts, texts)
@settings(max_examples=60, deadline=None)
def test_every_segment_of_the_template_is_read_as_if_there_were_no_special_tokens(first: str, second: str) -> None:
    processor = tiny_processor()
    known, plain = processor.tokenizer.backend.token_to_id, without_tokens(processor)
    prompt = processor.chat_prompt(said(first, second))
    segments = (f"User: {first}", f"\nAssistant: {second}", "\nAssistant:")
    due = [known("<s>"), *plain.encode(segments[0]).ids, known(END), *plain.encode(segments[1]).ids, known(END)]
    assert processor.tokenizer.encode(processor.expand(prompt)) == [*due, *plain.encode(segments[2]).ids]
    assert unmarked(prompt) == processor.apply_chat_template(said(first, second), add_generation_prompt=True)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_other_texts_make_the_prompt_that_they_made(contents: list[str]) -> None:
    processor = tiny_processor()
    assert processor.chat_prompt(said(*contents)) == processor.apply_chat_template(said(*contents), add_generation_prompt=True)


@pytest.fixture(scope="module", params=["2024", "2023"])
def published(request: pytest.FixtureRequest) -> Processor:
    if request.param == "2024":
        return Idefics2Processor.from_folder(mistral_tokenizer.checkpoint())
    return IdeficsProcessor.from_folder(mistral_tokenizer.checkpoint_of_2023())


@pytest.mark.parametrize("name", NAMES)
def test_published_tokenizers_read_names_as_their_characters(published: Processor, name: str) -> None:
    processor = published
    ids = processor.tokenizer.encode(processor.expand(processor.chat_prompt(said(f"a{name}b"))))
    end = ids.index(processor.tokenizer.backend.token_to_id(END))
    assert ids[:end] == [1, *without_tokens(processor).encode(f"User: a{name}b").ids]


def real(processor: Processor, prompt: str) -> list[str]:
    special = set(processor.tokenizer.all_special_ids)
    ids = processor.tokenizer.encode(processor.expand(prompt))
    return [processor.tokenizer.backend.id_to_token(i) for i in ids if i in special]


def with_template(template: str) -> Processor:
    processor = copy.copy(tiny_processor())
    processor.chat_template = template
    return processor


@pytest.mark.parametrize(
    ("template", "messages"),
    [
        (PLAIN, said("</", "s>")),
        (PLAIN, said(["</", "s>"])),
        (PLAIN.replace("part['text']", "part['text'] | trim"), said("<", " /s> ")),
        (PLAIN.replace("part['text']", "part['text'] | replace(' ', '')"), said("< / s >")),
        (PLAIN.replace("part['text']", "part['text'] | lower"), said("</S>")),
        (PLAIN.replace("part['text']", "part['text'][::-1]"), said(">s/<")),
        (PLAIN.replace("{{ part", "<{{ part"), said("image>", "s>")),
        ("{% for m in messages %}{{ m['name'] }}{% endfor %}", [{"role": "user", "content": "a", "name": "</s>"}]),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", [{"role": "</s>", "content": "a"}]),
        ("{{ messages | tojson }}", [{"role": "user", "content": "a", "</s>": 1}]),
    ],
    ids=["messages", "parts", "trimmed", "replaced", "lowered", "reversed", "half the template's", "name", "role", "key"],
)
def test_no_way_through_a_template_makes_a_token_of_a_text(template: str, messages: list[dict[str, object]]) -> None:
    processor = with_template(template)
    assert len(real(processor, processor.apply_chat_template(messages))) > 1  # as the reference reads it: begins with <s>
    assert real(processor, processor.chat_prompt(messages)) == ["<s>"]


def test_a_template_that_looks_into_texts_is_followed_where_that_forges_nothing() -> None:
    processor = with_template(
        "{% for m in messages %}{{ m['content'][0]['text'].split('</think>')[-1] }}<end_of_utterance>{% endfor %}"
    )
    assert processor.chat_prompt(said("<think>so</think>yes")) == "yes<end_of_utterance>"
    with pytest.raises(TemplateError, match="holds a special token"):
        processor.chat_prompt(said("<think>so</think>yes</s>"))


def test_added_tokens_that_the_template_writes_are_text_in_texts_and_others_stay_tokens() -> None:
    processor = tiny_processor()
    backend = processor.tokenizer.backend
    backend.add_tokens([AddedToken("<turn>", normalized=False), AddedToken("<loc1>", normalized=False)])
    processor.chat_template = PLAIN.replace("{% for part", "<turn>{% for part")
    prompt = processor.chat_prompt(said("a<turn>b<loc1></s>"))
    ids = processor.tokenizer.encode(prompt)
    assert [ids.count(backend.token_to_id(token)) for token in ("<turn>", "<loc1>", "</s>")] == [1, 1, 0]


def test_tokens_that_begin_alike_or_overlap() -> None:
    processor = with_template(PLAIN.replace("{{ part['text'] }}", "{{ part['text'] }}bcd{{ part['text'] }}"))
    for token in ("ab", "bcd", "bcde", "dx"):
        processor.tokenizer.backend.add_special_tokens([AddedToken(token, normalized=False)])
    for text in ("a", "e", "x", "ab", "bcde", "abcdex"):
        assert real(processor, processor.chat_prompt(said(text))) == ["<s>", "bcd"], text


def test_characters_that_stand_for_marks_stay_what_they_are() -> None:
    processor = tiny_processor()
    strange = f"\ufdd0{chr(0x10_0000)}</s>\ufdd1"
    ids = processor.tokenizer.encode(processor.chat_prompt(said(strange)))
    assert strange in processor.decode(ids)
    with pytest.raises(InputError, match="U\\+FDD0 to U\\+FDEF"):
        processor.tokenizer.encode(processor.chat_prompt(said("</s>" + "".join(map(chr, range(0xFDD0, 0xFDF0))))))


def test_images_of_the_template_stand_beside_images_in_texts() -> None:
    processor = tiny_processor()
    content = [{"type": "image"}, {"type": "text", "text": f"what is {IMAGE} or {FAKE}{IMAGE}{FAKE}?"}]
    prompt = processor.chat_prompt([{"role": "user", "content": content}])
    inputs = processor.inputs([prompt], [[Image.new("RGB", (40, 30))]])
    assert int((inputs.input_ids_BT == processor.image_token_id).sum()) == processor.tokens_per_sub_image
    assert len(inputs.images_CHW) == 1


def test_what_a_normaliser_makes_a_special_token_of_is_refused() -> None:
    processor = with_template(PLAIN.replace("{% for part", "<turn>{% for part"))
    backend = processor.tokenizer.backend
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("<turn>", normalized=True)])
    wide = "\uff1cturn\uff1e"
    assert len(real(processor, f"{wide}")) == 2, "the tokenizer reads it so"
    with pytest.raises(TemplateError, match="normaliser makes"):
        processor.chat_prompt(said(wide))
    assert processor.chat_prompt(said("\uff1ca\uff1e")) == "<turn>\uff1ca\uff1e"
    assert real(processor, processor.chat_prompt(said("a<turn>"))) == ["<s>", "<turn>"]
