"""Drawings agree with their facts, and every answer with an independent reading of the question."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest

from idefics.data.sources.drawings import (
    COLORS,
    KINDS,
    PATCH_COLORS,
    PATCH_KINDS,
    TASKS,
    Drawing,
    Exchange,
    Number,
    Scene,
    Thing,
    conversation,
    corpus,
    draw_scene,
    fonts,
    invent_scene,
    palette,
    questions_of,
    small_talk,
    tasks_of,
)
from idefics.data.sources.drawings.lettering import MIN_DIGIT_HEIGHT
from idefics.data.sources.drawings.shapes import PLURALS
from idefics.data.sources.drawings.wording import NUMERALS, PHRASINGS, SMALL_TALK
from idefics.errors import InputError


def drawn(seed: int, subject: str | None = None, **options: int) -> Drawing:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(84, 183, size=2).tolist()
    return draw_scene(rng, width=width, height=height, subject=subject, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def gallery() -> list[Drawing]:
    return [drawn(seed) for seed in range(300)]


def boxes_of(scene: Scene) -> list[tuple[float, float, float, float]]:
    return [thing.box for thing in scene.things] + list(scene.number.boxes if scene.number else ())


class TestDrawing:
    def test_same_seed_same_picture(self) -> None:
        for seed in range(30):
            one, two = drawn(seed), drawn(seed)
            assert one.scene == two.scene
            assert one.image.tobytes() == two.image.tobytes()

    def test_size_and_mode(self, gallery: list[Drawing]) -> None:
        for drawing in gallery:
            assert drawing.image.mode == "RGB"
            assert drawing.image.size == (drawing.scene.width, drawing.scene.height)

    def test_everything_is_inside(self, gallery: list[Drawing]) -> None:
        for drawing in gallery:
            for left, top, right, bottom in boxes_of(drawing.scene):
                assert -1 <= left < right <= drawing.scene.width + 1
                assert -1 <= top < bottom <= drawing.scene.height + 1

    def test_things_keep_apart(self, gallery: list[Drawing]) -> None:
        for drawing in gallery:
            boxes = [thing.box for thing in drawing.scene.things]
            digits = list(drawing.scene.number.boxes) if drawing.scene.number else []
            for i, a in enumerate(boxes):
                for b in boxes[i + 1 :] + digits:
                    assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]

    def test_sizes(self, gallery: list[Drawing]) -> None:
        sides = [max(t.box[2] - t.box[0], t.box[3] - t.box[1]) for d in gallery for t in d.scene.things]
        assert min(sides) > 17.9
        assert max(sides) > 80

    def test_digits_are_never_too_small(self) -> None:
        heights = [drawn(seed, "number").scene.number.height for seed in range(150)]  # type: ignore[union-attr]
        assert 12.9 < min(heights) < 16
        assert max(heights) > 50

    def test_numbers(self) -> None:
        numbers = [drawn(seed, "number").scene.number for seed in range(200)]
        texts = [number.text for number in numbers if number]
        assert len(texts) == 200
        assert set(map(len, texts)) == {1, 2, 3, 4}
        assert all(str(int(text)) == text for text in texts)
        assert any(number.plate for number in numbers if number)
        assert all(len(drawn(seed, "number", max_digits=1).scene.number.text) == 1 for seed in range(20))  # type: ignore[union-attr]

    def test_counts_are_spread(self) -> None:
        counts = Counter(len(drawn(seed, "things").scene.things) for seed in range(240))
        assert set(counts) == {1, 2, 3, 4, 5, 6}
        assert min(counts.values()) > 20
        assert {len(drawn(seed, "things", max_things=2).scene.things) for seed in range(20)} == {1, 2}
        assert all(len(drawn(seed, "thing").scene.things) == 1 for seed in range(20))

    def test_six_things_fit_into_the_smallest_drawing(self) -> None:
        for seed in range(60):
            draw_scene(np.random.default_rng(seed), width=84, height=84, subject="things")

    def test_refusals(self) -> None:
        rng = np.random.default_rng(0)
        with pytest.raises(InputError, match="at least 84"):
            draw_scene(rng, width=83, height=100)
        with pytest.raises(InputError, match="max_digits is 5"):
            draw_scene(rng, width=84, height=84, max_digits=5)
        with pytest.raises(InputError, match="max_things is 7"):
            draw_scene(rng, width=84, height=84, max_things=7)


class TestPatchLabels:
    def test_labels_agree_with_the_facts(self, gallery: list[Drawing]) -> None:
        for drawing in gallery:
            kinds, colors = drawing.patch_labels()
            assert kinds.shape == colors.shape == (drawing.scene.height // 14, drawing.scene.width // 14)
            assert kinds.dtype == colors.dtype == np.int64
            seen = {(PATCH_KINDS[k], PATCH_COLORS[c]) for k, c in zip(kinds.ravel(), colors.ravel(), strict=True) if k}
            things = {(thing.kind, thing.color) for thing in drawing.scene.things}
            number = drawing.scene.number
            digits = {(digit, number.color) for digit in number.text} if number else set()
            assert things <= seen <= things | digits
            assert ((kinds == 0) == (colors == 0)).all()

    def test_every_thing_owns_a_patch_that_it_touches(self, gallery: list[Drawing]) -> None:
        for drawing in gallery:
            kinds, _ = drawing.patch_labels()
            for thing in drawing.scene.things:
                left, top, right, bottom = (int(side // 14) for side in thing.box)
                assert (kinds[top : bottom + 1, left : right + 1] == PATCH_KINDS.index(thing.kind)).any()

    def test_a_large_thing_has_its_own_colour_where_its_label_is(self) -> None:
        """The picture itself, not only the bookkeeping, shows the thing where the labels say."""
        checked = 0
        for seed in range(120):
            drawing = drawn(seed, "thing")
            kinds, _ = drawing.patch_labels()
            pixels = np.asarray(drawing.image, dtype=np.float64)[: kinds.shape[0] * 14, : kinds.shape[1] * 14]
            means = pixels.reshape(kinds.shape[0], 14, kinds.shape[1], 14, 3).mean(axis=(1, 3))
            if (kinds > 0).sum() < 4 or (kinds == 0).sum() < 4:
                continue
            checked += 1
            gap = np.abs(means[kinds > 0].mean(axis=0) - means[kinds == 0].mean(axis=0)).max()
            assert gap > 15, drawing.scene
        assert checked > 50


class TestPalette:
    def test_neighbours_never_overlap(self) -> None:
        rng = np.random.default_rng(0)
        shades = {color: palette.lab([palette.shade(rng, color) for _ in range(60)]) for color in COLORS}
        for i, one in enumerate(COLORS):
            for other in COLORS[i + 1 :]:
                gaps = np.linalg.norm(shades[one][:, None] - shades[other][None], axis=-1)
                assert gaps.min() > 15, (one, other)

    def test_backdrops_contrast(self) -> None:
        rng = np.random.default_rng(1)
        for color in COLORS * 5:
            ink = palette.shade(rng, color)
            scenery = palette.backdrop(rng, [ink], lightness=30)
            if scenery is not None:
                assert palette.stands_out(ink, scenery.first, lightness=30)
                assert palette.stands_out(ink, scenery.second, lightness=30)

    def test_fonts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = [face.name for face in fonts.faces()]
        assert len(names) == len(set(names)) > 20
        monkeypatch.setattr(fonts, "WHEELS", ("no_such_wheel",))
        fonts.faces.cache_clear()
        with pytest.raises(InputError, match=r"pip install 'idefics\[draw\]'"):
            fonts.faces()
        monkeypatch.undo()
        fonts.faces.cache_clear()


SINGULAR = {plural: kind for kind, plural in PLURALS.items()} | {kind: kind for kind in KINDS}
FOLLOW_UPS = {form.lower().rstrip("?") for key in ("and color", "and shape") for form in PHRASINGS[key]}


class Reading:
    """What the words of a question refer to, found with a vocabulary and nothing from the generator."""

    def __init__(self, turn: Exchange) -> None:
        self.text = turn.question.lower().replace("colour", "color").replace(", please", "")
        words = re.findall(r"[a-z]+|\d+", self.text)
        self.kind = next((SINGULAR[w] for w in words if w in SINGULAR), None)
        self.color = next((w for w in words if w in COLORS), None)
        self.index = 1 if "second" in words else 0
        self.digits = next((w for w in words if w.isdigit()), None)
        self.count = 1 if "only one" in self.text else None
        if self.digits and re.search(r"\d+ objects", self.text):
            self.count, self.digits = int(self.digits), None
        self.number = any(w in words for w in ("number", "sign", "plate")) and "number of" not in self.text

    def things(self, scene: Scene) -> list[Thing]:
        return [t for t in scene.things if self.kind in (None, t.kind) and self.color in (None, t.color)]

    def true_of(self, scene: Scene) -> bool:
        if self.digits:
            return scene.number is not None and scene.number.text == self.digits
        if self.count is not None:
            return len(scene.things) == self.count
        if self.number:
            return scene.number is not None
        return bool(self.things(scene))


def parsed(description: str) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for part in re.split(r", | and ", description):
        head, *rest = part.split()
        if part.startswith("the number"):
            found["number", rest[1]] += 1
        else:
            color, kind = rest
            assert (head in ("a", "an")) == (kind in KINDS)
            found[color, SINGULAR[kind]] += 1 if head in ("a", "an") else NUMERALS.index(head)
    return found


def facts(scene: Scene) -> Counter[tuple[str, str]]:
    found = Counter((thing.color, thing.kind) for thing in scene.things)
    if scene.number:
        found["number", scene.number.text] += 1
    return found


def check(turn: Exchange, scenes: list[Scene]) -> None:
    read = Reading(turn)
    scene = scenes[read.index]
    assert len(scenes) == 2 or (read.index == 0 and "first" not in read.text)
    if turn.task == "color":
        matches: list[Thing] | list[Number | None] = [scene.number] if read.number else read.things(scene)
        assert [m.color for m in matches if m] == [turn.answer]
        assert len(matches) == 1
    elif turn.task == "shape":
        matches = read.things(scene)
        assert [m.kind for m in matches] == [turn.answer]
    elif turn.task in ("thing", "describe"):
        assert parsed(turn.answer) == facts(scene)
        assert turn.task == "describe" or len(facts(scene)) == 1
    elif turn.task == "count":
        assert scene.number is None
        assert turn.answer == str(len(read.things(scene)))
    elif turn.task == "number":
        assert scene.number is not None
        assert turn.answer == scene.number.text
    elif turn.task == "yesno":
        assert turn.answer == ("yes" if read.true_of(scene) else "no")
    elif turn.task == "which":
        if "more objects" in read.text:
            truths = [len(scenes[0].things) > len(scenes[1].things), len(scenes[1].things) > len(scenes[0].things)]
        else:
            truths = [read.true_of(s) for s in scenes]
        assert truths == [turn.answer == "the first", turn.answer == "the second"]
    else:
        assert turn.task == "chat"


def referent(turn: Exchange, scenes: list[Scene]) -> Thing | Number:
    """What `it` means after the turn; fails where that is ambiguous."""
    read = Reading(turn)
    scene = scenes[("the first", "the second").index(turn.answer)] if turn.task == "which" else scenes[read.index]
    if turn.task == "number" or read.digits or (read.number and turn.task in ("which", "yesno", "color")):
        assert scene.number is not None
        return scene.number
    if turn.task == "thing" and scene.number:
        assert not scene.things
        return scene.number
    (only,) = read.things(scene)
    return only


class TestQuestions:
    def test_every_answer_follows_from_the_facts(self, gallery: list[Drawing]) -> None:
        rng = np.random.default_rng(0)
        asked: Counter[str] = Counter()
        for start in range(0, 298):
            scenes = [drawing.scene for drawing in gallery[start : start + 1 + start % 2]]
            for task in tasks_of(scenes):
                turn = questions_of(task, rng, scenes)
                assert turn.task == task
                asked[task] += 1
                check(turn, scenes)
        assert set(asked) == set(TASKS) - {"chat"}
        assert min(asked.values()) > 40

    def test_favored_tasks_come_more_often(self, gallery: list[Drawing]) -> None:
        def counted(favor: dict[str, float] | None) -> int:
            rng = np.random.default_rng(0)
            talks = [conversation(rng, [drawing.scene], turns=3, favor=favor) for drawing in gallery]
            return sum(turn.task == "count" for talk in talks for turn in talk)

        assert counted({"count": 4.0}) > 1.5 * counted(None) > 0
        with pytest.raises(InputError, match="unknown tasks colour"):
            conversation(np.random.default_rng(0), [gallery[0].scene], turns=1, favor={"colour": 2.0})

    def test_conversations(self, gallery: list[Drawing]) -> None:
        rng = np.random.default_rng(0)
        followed = 0
        for start in range(0, 298):
            scenes = [drawing.scene for drawing in gallery[start : start + 1 + start % 2]]
            turns = conversation(rng, scenes, turns=4)
            assert len(turns) == 4
            it: Thing | Number | None = None
            for before, turn in zip([None, *turns], turns, strict=False):
                if Reading(turn).text.rstrip("?") in FOLLOW_UPS and before is not None:
                    it = it or referent(before, scenes)
                    assert turn.answer == (it.kind if turn.task == "shape" and isinstance(it, Thing) else it.color)
                    followed += 1
                else:
                    it = None
                    check(turn, scenes)
        assert followed > 60

    def test_answers_are_short_and_plain(self, gallery: list[Drawing]) -> None:
        rng = np.random.default_rng(3)
        for drawing in gallery[:100]:
            for turn in conversation(rng, [drawing.scene], turns=3):
                assert turn.answer == turn.answer.lower().strip()
                assert not turn.answer.endswith(".")
                assert not re.search(r"[{}]|  | [?.,]", turn.question)

    def test_yes_and_no_and_first_and_second_are_balanced(self, gallery: list[Drawing]) -> None:
        rng = np.random.default_rng(4)
        answers: dict[str, Counter[str]] = defaultdict(Counter)
        scenes = [drawing.scene for drawing in gallery]
        for start in range(298):
            answers["yesno"][questions_of("yesno", rng, scenes[start : start + 1]).answer] += 1
            if "which" in tasks_of(scenes[start : start + 2]):
                answers["which"][questions_of("which", rng, scenes[start : start + 2]).answer] += 1
        for counts in answers.values():
            assert len(counts) == 2
            assert min(counts.values()) > 0.4 * counts.total()

    def test_phrasings_vary(self, gallery: list[Drawing]) -> None:
        rng = np.random.default_rng(5)
        single = next(d for d in gallery if len(d.scene.things) == 1 and not d.scene.number)
        number = next(d for d in gallery if d.scene.number)
        for task, drawing in (("color", single), ("shape", single), ("thing", single), ("number", number), ("yesno", number)):
            assert len({questions_of(task, rng, [drawing.scene]).question for _ in range(100)}) > 12
        assert all(len(set(forms)) >= 5 for forms in PHRASINGS.values())

    def test_small_talk(self) -> None:
        rng = np.random.default_rng(6)
        turns = [small_talk(rng) for _ in range(300)]
        assert {turn.answer for turn in turns} == {answer for answer, _ in SMALL_TALK}
        assert {turn.task for turn in turns} == {"chat"}
        assert len({turn.question for turn in turns}) > 40
        assert questions_of("chat", rng, []).task == "chat"

    def test_same_seed_same_words(self, gallery: list[Drawing]) -> None:
        scenes = [drawing.scene for drawing in gallery[:2]]
        one, two = (conversation(np.random.default_rng(7), scenes, turns=5) for _ in range(2))
        assert one == two
        texts, again = (list(corpus(np.random.default_rng(8), 200)) for _ in range(2))
        assert texts == again
        assert len(texts) == 200
        assert {w for t in texts for w in re.findall(r"[a-z]+", t.lower())} >= {*COLORS, *KINDS, "yes", "no", "second"}

    def test_refusals(self, gallery: list[Drawing]) -> None:
        rng = np.random.default_rng(9)
        scenes = [drawing.scene for drawing in gallery[:3]]
        with pytest.raises(InputError, match="1 or 2 scenes, not 3"):
            conversation(rng, scenes, turns=1)
        with pytest.raises(InputError, match="turns is 0"):
            conversation(rng, scenes[:1], turns=0)
        with pytest.raises(InputError, match="no 'which' question"):
            questions_of("which", rng, scenes[:1])
        with pytest.raises(InputError, match="unknown task 'ocr'"):
            questions_of("ocr", rng, scenes[:1])


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(11)
    return [invent_scene(rng, width=84 + 14 * (i % 7), height=84 + 14 * (i % 5)) for i in range(600)]


class TestInvented:
    def test_everything_is_inside_and_apart(self, scenes: list[Scene]) -> None:
        for scene in scenes:
            for left, top, right, bottom in scene.boxes:
                assert 0 <= left < right <= scene.width + 1e-6
                assert 0 <= top < bottom <= scene.height + 1e-6
            for a, b in combinations([thing.box for thing in scene.things], 2):
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]

    def test_digits_stand_from_left_to_right(self, scenes: list[Scene]) -> None:
        lengths: Counter[int] = Counter()
        for scene in scenes:
            if scene.number is not None:
                lengths[len(scene.number.text)] += 1
                lefts = [box[0] for box in scene.number.boxes]
                assert lefts == sorted(lefts)
                assert len(lefts) == len(scene.number.text)
                assert min(bottom - top for _, top, _, bottom in scene.number.boxes) >= MIN_DIGIT_HEIGHT
        assert set(lengths) == {1, 2, 3, 4}
        assert min(lengths.values()) > 0.15 * lengths.total()

    def test_facts_come_as_often_as_in_drawings(self, scenes: list[Scene], gallery: list[Drawing]) -> None:
        def shares(of: list[Scene]) -> list[float]:
            return [
                float(np.mean([bool(scene.number) for scene in of])),
                float(np.mean([len(scene.things) == 1 and not scene.number for scene in of])),
                float(np.mean([len(scene.things) > 3 for scene in of])),
            ]

        assert np.allclose(shares(scenes), shares([drawing.scene for drawing in gallery]), atol=0.08)

    def test_limits_and_seed(self) -> None:
        rng, again = np.random.default_rng(12), np.random.default_rng(12)
        for _ in range(50):
            scene = invent_scene(rng, width=168, height=98, max_digits=2, max_things=3)
            assert scene == invent_scene(again, width=168, height=98, max_digits=2, max_things=3)
            assert len(scene.things) <= 3
            assert scene.number is None or len(scene.number.text) <= 2
