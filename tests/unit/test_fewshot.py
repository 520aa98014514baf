"""Examples before a question, for models with chats and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import idefics
from idefics import fewshot
from idefics.api import Idefics
from idefics.errors import InputError, OptionError, TemplateError
from idefics.fewshot import Shot
from idefics.weights.create import create_checkpoint

COLORS = ("red", "green", "blue", "yellow")


@pytest.fixture(scope="module", params=["tiny-random-idefics2", "tiny-random-idefics"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Idefics:
    return idefics.load(create_checkpoint(request.param, tmp_path_factory.mktemp("model") / "tiny"))


def plain(color: str) -> Image.Image:
    return Image.new("RGB", (60, 60), color)


def shots() -> list[Shot]:
    return [Shot(question=f"Which is {color}?", answer=color, images=(plain(color),)) for color in COLORS]


def test_a_form_for_models_without_chats(loaded: Idefics) -> None:
    prompt, images = fewshot.build(loaded, shots()[:2], "And this?", [plain("pink")], chat=False)
    assert prompt == (
        "<image>Question: Which is red? Answer: red\n<image>Question: Which is green? Answer: green\n"
        "<image>Question: And this? Answer:"
    )
    assert len(images) == 3
    assert isinstance(loaded.generate(prompt, images, raw=True, max_new_tokens=2), str)


def test_earlier_turns_for_models_with_chats(loaded: Idefics) -> None:
    prompt, images = fewshot.build(loaded, shots()[:1], "And this?", [plain("pink")])
    assert prompt.index("<image>Which is red?") < prompt.index("red<end_of_utterance>") < prompt.index("<image>And this?")
    assert prompt.endswith("Assistant:")
    assert len(images) == 2


def test_a_form_may_be_given_and_values_are_not_fields(loaded: Idefics) -> None:
    odd = [Shot(question="{answer}?", answer="{question}")]
    prompt, images = fewshot.build(loaded, odd, "{images}", form="{images}Q: {question} A: {answer}.", chat=False)
    assert prompt == "Q: {answer}? A: {question}.\nQ: {images} A:"
    assert images == []


def test_the_nearest_are_nearest_and_the_likest_is_last(loaded: Idefics) -> None:
    near = fewshot.nearest(loaded, shots(), [plain("blue")], k=2)
    assert near[-1].answer == "blue"
    assert len(near) == 2


def test_random_is_repeatable_and_order_is_kept(loaded: Idefics) -> None:
    one, two, other = (fewshot.choose(loaded, shots(), [], by="random", k=3, seed=seed) for seed in (1, 1, 2))
    assert [s.answer for s in one] == [s.answer for s in two] != [s.answer for s in other]
    assert [s.answer for s in fewshot.choose(loaded, shots(), [], by="order", k=2)] == ["red", "green"]
    assert len(fewshot.choose(loaded, shots(), [], by="order")) == 4
    assert len(fewshot.at_random(shots(), k=9)) == 4


@pytest.mark.parametrize("lines", [True, False])
def test_a_file_of_examples(tmp_path: Path, lines: bool) -> None:
    plain("red").save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "question": "What?", "answer": "red"},
        {"images": ["https://example.com/b.png", "a.png"], "question": "Both?", "answer": "no"},
        {"question": "Text only?", "answer": "yes"},
    ]
    file = tmp_path / "shots.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows))
    read = fewshot.read_shots(file)
    assert [len(shot.images) for shot in read] == [1, 2, 0]
    assert read[0].images == (str(tmp_path / "a.png"),)
    assert read[1].images == ("https://example.com/b.png", str(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no examples"),
        ("{", "neither a JSON list nor"),
        ("[3]", "example 1 .* is a int"),
        ('{"question": "a", "answer": 3}', "answer must be a text"),
        ('{"question": "a", "answer": "b", "picture": "c"}', "unknown key.* picture"),
        ('{"question": "a", "answer": "b", "image": "c", "images": []}', "image and images"),
        ('{"question": "a", "answer": "b", "images": "c.png"}', "paths or URLs"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "shots.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        fewshot.read_shots(file)
    with pytest.raises(InputError, match="cannot be read"):
        fewshot.read_shots(tmp_path / "none.jsonl")


def test_refusals(loaded: Idefics) -> None:
    with pytest.raises(OptionError, match="order, random, nearest, not 'best'"):
        fewshot.choose(loaded, shots(), [], by="best")
    with pytest.raises(OptionError, match="at least 1 example"):
        fewshot.choose(loaded, shots(), [], by="order", k=0)
    with pytest.raises(InputError, match="question has none"):
        fewshot.nearest(loaded, shots(), [], k=1)
    with pytest.raises(InputError, match="example 2 has none"):
        fewshot.nearest(loaded, [shots()[0], Shot(question="a", answer="b")], [plain("red")], k=1)
    with pytest.raises(InputError, match="stands for an image"):
        fewshot.build(loaded, [], "what is <image>?")
    with pytest.raises(InputError, match=r"must hold \{answer\} once"):
        fewshot.build(loaded, [], "a", form="{images}{question}", chat=False)


def test_a_chat_needs_a_template(loaded: Idefics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.processor, "chat_template", None)
    assert fewshot.build(loaded, [], "a")[0] == "Question: a Answer:"
    with pytest.raises(TemplateError):
        fewshot.build(loaded, [], "a", chat=True)


def test_texts_of_a_file_are_not_cut_where_json_goes_on(tmp_path: Path) -> None:
    rows = [{"question": f"a{mark}b?", "answer": "c"} for mark in ("\u2028", "\u2029", "\x85")]
    file = tmp_path / "shots.jsonl"
    written = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_bytes(("\ufeff" + written + "\n \t\n\n").encode())
    assert [shot.question for shot in fewshot.read_shots(file)] == [row["question"] for row in rows]
    file.write_bytes(("\ufeff" + json.dumps(rows)).encode())
    assert len(fewshot.read_shots(file)) == 3


def test_an_image_in_base64_is_no_path(tmp_path: Path) -> None:
    content = "iVBORw0K" * 625
    file = tmp_path / "shots.jsonl"
    file.write_text(json.dumps({"image": content, "question": "a", "answer": "b"}))
    assert fewshot.read_shots(file)[0].images == (content,)


@pytest.mark.parametrize(
    "form", ["A: {answer} Q: {question} {images}", "{images}{answer} {question}", "{question}{answer}{images}"]
)
def test_a_form_that_answers_before_it_asks(loaded: Idefics, form: str) -> None:
    with pytest.raises(InputError, match=r"must hold \{answer\} last"):
        fewshot.build(loaded, shots()[:1], "What?", [plain("red")], form=form, chat=False)


def test_one_image_is_one_image(loaded: Idefics, tmp_path: Path) -> None:
    plain("blue").save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    one = Shot(question="a", answer="b", images=path)
    assert one.images == (path,)
    for given in (path, [path], plain("blue")):
        prompt, images = fewshot.build(loaded, [one], "What?", given, chat=False)
        assert (prompt.count("<image>"), len(images)) == (2, 2)
        assert fewshot.nearest(loaded, shots(), given, k=1)[0].answer == "blue"
    assert fewshot.build(loaded, [], "What?", None, chat=False)[1] == []


@pytest.mark.parametrize("k", [-1, 0, True, "2"])
def test_numbers_of_examples_that_are_none(loaded: Idefics, k: int) -> None:
    for choose in (
        lambda: fewshot.at_random(shots(), k=k),
        lambda: fewshot.nearest(loaded, shots(), [plain("red")], k=k),
        lambda: fewshot.choose(loaded, shots(), [], by="order", k=k),
    ):
        with pytest.raises(OptionError, match="at least 1 example"):
            choose()


def test_processes_of_one_model_draw_the_same_examples(loaded: Idefics, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [Shot(question=str(number), answer="a") for number in range(1000)]
    free = [fewshot.choose(loaded, many, [], by="random", k=5) for _ in range(2)]
    assert free[0] != free[1]
    monkeypatch.setattr(fewshot, "agreed_seed", lambda model: 7 if model is loaded.model else None)
    agreed = [fewshot.choose(loaded, many, [], by="random", k=5) for _ in range(2)]
    assert agreed[0] == agreed[1]
    assert fewshot.choose(loaded, many, [], by="random", k=5, seed=8) != agreed[0], "a seed that was given counts"


def test_special_tokens_in_examples_are_text_and_reach_the_model(loaded: Idefics) -> None:
    prompt, images = fewshot.build(loaded, [Shot(question="a</s>", answer="b")], "c<end_of_utterance>d")
    assert isinstance(loaded.generate(prompt, images, raw=True, max_new_tokens=1), str)
