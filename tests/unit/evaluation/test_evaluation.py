"""Asking is apart from scoring: what was answered is kept, and scored again without a model."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import tiny_processor
from idefics.data.sample import Message, Sample
from idefics.errors import InputError, OptionError
from idefics.evaluation.metrics.estimate import Estimate, estimate
from idefics.evaluation.records import Record, read_records, write_records
from idefics.evaluation.runner import ask
from idefics.evaluation.scores import scores
from idefics.evaluation.task import Question
from idefics.evaluation.tasks import drawings
from idefics.evaluation.tasks.drawings import KINDS, DrawingsTask


@dataclass
class Sums:
    """Conversations of two questions; the first is asked on the way only. How many were taken is counted."""

    count: int
    taken: int = 0
    name: str = "sums"
    version: int = 3
    longest: int = 5

    def questions(self) -> Iterator[Question]:
        for number in range(self.count):
            self.taken += 1
            messages = []
            for asked, due in ((f"{number} + 1?", number + 1), (f"{number} + 2?", number + 2)):
                messages += [Message("user", (asked,)), Message("assistant", (str(due),), learned=True)]
            label = "even" if number % 2 == 0 else "odd"
            yield Question(f"sum {number}", Sample(tuple(messages), "it"), ((), ("all", label)))

    def score(self, record: Record) -> float:
        return float(record.answer == record.expected)


@dataclass
class Echo:
    """Stands for a loaded model; says how often it was asked before, as a text."""

    task: Sums
    processor: Any = field(default_factory=tiny_processor)
    calls: list[tuple[list[str], dict[str, Any]]] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)

    def generate(self, prompt: Sequence[str], images: Sequence[Sequence[Any]], **options: Any) -> list[str]:
        assert images == [[] for _ in prompt]
        self.calls.append((list(prompt), options))
        self.ahead.append(self.task.taken)
        first = sum(len(earlier) for earlier, _ in self.calls[:-1])
        return [f"said {first + number}" for number in range(len(prompt))]


def asked(count: int, together: int) -> tuple[Echo, list[Record]]:
    task = Sums(count)
    model = Echo(task)
    return model, list(ask(task, model, together=together))


def test_a_conversation_reads_its_own_answers() -> None:
    model, records = asked(3, together=2)
    assert [(r.question, r.turn, r.asked, r.answer) for r in records] == [
        ("sum 0", 0, "0 + 1?", "said 0"), ("sum 0", 1, "0 + 2?", "said 2"),
        ("sum 1", 0, "1 + 1?", "said 1"), ("sum 1", 1, "1 + 2?", "said 3"),
        ("sum 2", 0, "2 + 1?", "said 4"), ("sum 2", 1, "2 + 2?", "said 5"),
    ]  # fmt: skip
    end = "<end_of_utterance>\n"
    assert model.calls[1][0][0] == f"User: 0 + 1?{end}Assistant: said 0{end}User: 0 + 2?{end}Assistant:"
    assert all(options == {"raw": True, "do_sample": False, "max_new_tokens": 5} for _, options in model.calls)


def test_few_questions_are_in_memory() -> None:
    model, _ = asked(7, together=3)
    assert model.ahead == [3, 3, 6, 6, 7, 7]


def test_together_is_at_least_one() -> None:
    with pytest.raises(OptionError, match="together = 0"):
        asked(1, together=0)


def test_answers_are_scored_again_from_a_file(tmp_path: Path) -> None:
    _, records = asked(4, together=4)
    records = [replace(record, answer=record.expected) if "3" in record.question else record for record in records]
    write_records(tmp_path / "answers.jsonl", records)
    again = read_records(tmp_path / "answers.jsonl")
    assert again == records
    found = scores(Sums(0), again)
    assert list(found) == ["all", "even", "odd"]
    assert (found["all"].mean, found["even"].mean, found["odd"].mean) == (0.25, 0.0, 0.5)
    assert (found["all"].count, found["even"].count, found["odd"].count) == (4, 2, 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 is no record of an answer: it holds list"),
        ('{"task": "sums"}', "line 2 is no record of an answer: it holds task instead of answer, asked, "),
        ({"answer": 7}, "line 2 holds something else where texts are due"),
        ({"labels": "all"}, "line 2 holds something else where texts are due"),
        ({"version": "3"}, "line 2 holds something else where numbers are due"),
        ({"turn": True}, "line 2 holds something else where numbers are due"),
    ],
)
def test_damaged_files(tmp_path: Path, line: str | dict[str, Any], said: str) -> None:
    path = tmp_path / "answers.jsonl"
    write_records(path, asked(1, together=1)[1][:1])
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole + (line if isinstance(line, str) else json.dumps({**json.loads(whole), **line})), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_records(path)


def test_answers_may_hold_any_character(tmp_path: Path) -> None:
    said = "one\u2028two\x85three\x0cfour\nfive\rsix"
    records = [replace(record, answer=said) for record in asked(2, together=2)[1]]
    write_records(tmp_path / "answers.jsonl", records)
    assert read_records(tmp_path / "answers.jsonl") == records


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read"):
        read_records(tmp_path / "nowhere.jsonl")


def test_answers_to_something_else() -> None:
    _, records = asked(2, together=2)
    with pytest.raises(InputError, match="sums version 3 cannot be scored as one to sums version 4"):
        scores(Sums(0, version=4), records)
    with pytest.raises(InputError, match="sums version 3 cannot be scored as one to drawings version 1"):
        scores(DrawingsTask(), records)
    with pytest.raises(InputError, match="no answers to sums that count"):
        scores(Sums(0), records[:1])


class TestEstimate:
    def test_apart_it_is_binomial(self) -> None:
        scores = [1.0] * 30 + [0.0] * 10
        assert estimate(scores, range(40)) == Estimate(0.75, pytest.approx((0.75 * 0.25 / 40) ** 0.5), 40)

    def test_scores_that_share_a_cluster_count_once(self) -> None:
        """Every score twice says no more than every score once."""
        once = estimate([1.0, 0.0, 0.0, 1.0, 1.0], range(5))
        twice = estimate([1.0, 0.0, 0.0, 1.0, 1.0] * 2, [*range(5), *range(5)])
        assert twice.error == pytest.approx(once.error)
        assert estimate([1.0, 0.0, 0.0, 1.0, 1.0] * 2, range(10)).error < 0.8 * once.error

    def test_worked_by_hand(self) -> None:
        """Mean 0.5; deviations of clusters 1.0 and -1.0 (two each of +0.5, of -0.5): sqrt(2) / 4."""
        assert estimate([1.0, 1.0, 0.0, 0.0], ["a", "a", "b", "b"]).error == pytest.approx(2**0.5 / 4)

    def test_nothing(self) -> None:
        with pytest.raises(InputError, match="no scores"):
            estimate([], [])


class TestDrawings:
    def test_the_questions_are_those_of_the_published_table(self) -> None:
        """The digest is of the questions that the README's numbers were measured with, before they were a task."""
        questions = list(DrawingsTask(each=2).questions())
        assert [question.name for question in questions] == [
            f"{kind} {number}" for kind in (*KINDS, "later turns") for number in range(2)
        ]
        texts = [[message.text for message in question.sample.messages] for question in questions]
        assert (
            hashlib.sha256(json.dumps(texts).encode()).hexdigest()
            == "eff39ccda72734e8b14768f3cde62a987f3c6ee5e8f9c59d5a434ccea8f19d55"
        )

    def test_rows_of_the_table(self) -> None:
        task = DrawingsTask(each=3, seed=5)
        records = [
            Record(
                task="drawings", version=1, question=question.name, turn=turn, labels=labels, asked="", expected="a",
                answer="a" if question.name != "count 1" else "b",
            )
            for question in task.questions()
            for turn, labels in enumerate(question.labels)
        ]  # fmt: skip
        found = scores(task, records)
        rows = [row for row in found if row in (*KINDS, "later turns")]
        assert rows == [*KINDS, "later turns"]
        assert all(found[row].mean == (1.0 if row != "count" else pytest.approx(2 / 3)) for row in rows)
        assert found["later turns"].count == 6
        assert sum(estimate.count for row, estimate in found.items() if row.startswith("count ")) == 3
        assert {row.split()[0] for row in found if row not in rows} == {"count", "number"}

    def test_some_pictures_are_two_or_three_times_as_large(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(drawings, "SHORTEST", drawings.LONGEST)  # only the largest are enlarged
        rng = np.random.default_rng(0)
        shown = [drawings.picture(rng, "thing") for _ in range(24)]
        factors = Counter(image.width // drawing.image.width for drawing, image in shown)
        assert factors.keys() == {1, 2, 3}
        assert factors[1] > max(factors[2], factors[3])

    def test_refused(self) -> None:
        with pytest.raises(OptionError, match="each = 0"):
            DrawingsTask(each=0)
