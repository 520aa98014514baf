"""Puts a task's questions to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

from idefics.data.sample import Sample
from idefics.errors import OptionError
from idefics.evaluation.records import Record
from idefics.evaluation.task import Question, Task
from idefics.processor.base import Processor

__all__ = ["Respondent", "ask"]


class Respondent(Protocol):
    """Whoever is asked: what `idefics.load` gives, or what stands for it."""

    @property
    def processor(self) -> Processor:
        """Writes the prompts."""
        ...

    def generate(
        self, prompt: Sequence[str], images: Sequence[Sequence[Any]], *, raw: bool, do_sample: bool, max_new_tokens: int
    ) -> list[str]:
        """An answer to each prompt, as `Idefics.generate` gives it."""
        ...


def ask(task: Task, model: Respondent, *, together: int = 50) -> Iterator[Record]:
    """Asks every question, greedily, and yields what was answered, question by question.

    In conversations the model reads its own earlier answers. Only `together` questions are in memory at a time.

    Args:
        task: asks.
        model: answers.
        together: questions that are put to the model at once.

    Raises:
        OptionError: `together` is below 1.
        TemplateError: the model has no chat template.
    """
    if together < 1:
        raise OptionError(f"together = {together}; ask at least 1 question at a time")
    questions = task.questions()
    while batch := list(islice(questions, together)):
        yield from _asked(task, model, batch)


def _asked(task: Task, model: Respondent, questions: list[Question]) -> Iterator[Record]:
    answers: list[list[str]] = [[] for _ in questions]
    prompts: list[list[str]] = [[] for _ in questions]
    while pending := [(n, due) for n, q in enumerate(questions) if (due := q.sample.answered(answers[n])) is not None]:
        for (number, due), answer in zip(pending, _answers(model, [due for _, due in pending], task.longest), strict=True):
            prompts[number].append(due.messages[-1].text)
            answers[number].append(answer)
    for question, asked, said in zip(questions, prompts, answers, strict=True):
        expected = [question.sample.messages[number].text for number in question.sample.learned]
        for turn, (labels, prompt, right, answer) in enumerate(zip(question.labels, asked, expected, said, strict=True)):
            yield Record(
                task=task.name,
                version=task.version,
                question=question.name,
                turn=turn,
                labels=labels,
                asked=prompt,
                expected=right,
                answer=answer,
            )


def _answers(model: Respondent, asked: list[Sample], longest: int) -> list[str]:
    prompts = [model.processor.chat_prompt(sample.plain()) for sample in asked]
    images = [sample.images for sample in asked]
    return model.generate(prompts, images, raw=True, do_sample=False, max_new_tokens=longest)
