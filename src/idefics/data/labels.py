"""Which tokens of a sample are learned: those of its learned messages, and the token that ends each, no other.

The checkpoint's own chat template writes the sample, so the model is trained on what it will be asked with. Where an answer
begins is where the prompt would end that asks for it; where it ends is after the next token that ends answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

from idefics.data.sample import Sample
from idefics.errors import InputError, TemplateError
from idefics.processor.base import END_OF_UTTERANCE, Processor
from idefics.processor.literal import MARK

__all__ = ["Labelled", "labelled"]


@dataclass(frozen=True)
class Labelled:
    """A sample as tokens.

    Attributes:
        prompt: the text that `Processor.inputs` takes; it ends with what is learned last.
        ids: what the processor makes of it.
        answers: for each token which learned message it belongs to, counted from 0; -1 for what is not learned.
    """

    prompt: str
    ids: tuple[int, ...]
    answers: tuple[int, ...]

    @cached_property
    def learned(self) -> int:
        """How many tokens are learned."""
        return sum(answer >= 0 for answer in self.answers)


def labelled(sample: Sample, processor: Processor) -> Labelled:
    """The tokens of a sample, and which are learned.

    Nothing of what follows the last learned message is kept, the template's line break after it included.

    Args:
        sample: with at least one learned message.
        processor: of the checkpoint that is trained.

    Raises:
        InputError: nothing in the sample is learned, its first message is, or one after the last learned one shows an image.
        TemplateError: there is no chat template, it does not end answers, or writes them otherwise once they are given; or
            the tokenizer reads the first word of an answer together with what stands before it.
    """
    learned = sample.learned
    if not learned:
        raise InputError(f"{sample.name} holds nothing to learn; mark a message as learned")
    if learned[0] == 0:
        raise InputError(f"{sample.name} begins with what is to be learned; put before it what it answers")
    if any(message.images for message in sample.messages[learned[-1] :]):
        raise InputError(f"{sample.name} shows an image after the last message that is learned; leave it out")
    messages = sample.plain()
    said = processor.chat_prompt(messages[: learned[-1] + 1], add_generation_prompt=False)
    end = said.rfind(END_OF_UTTERANCE)
    if end < 0:
        raise TemplateError(f"the chat template writes no {END_OF_UTTERANCE}, so nobody would learn where an answer ends")
    prompt = said[: end + len(END_OF_UTTERANCE)]
    whole = processor.expand(prompt)
    # Where no text holds a special token the plain template writes the same, in half the time.
    ask = processor.chat_prompt if MARK in said else partial(processor.apply_chat_template, add_generation_prompt=True)
    spans = []
    for number in learned:
        asked = processor.expand(ask(messages[:number]))
        stop = whole.find(END_OF_UTTERANCE, len(asked))
        if not whole.startswith(asked) or stop < 0:
            raise TemplateError(
                f"the chat template writes message {number} of {sample.name} otherwise once it is answered: "
                f"asked {asked[-40:]!r}, answered {whole[max(0, len(asked) - 40) : len(asked)]!r}"
            )
        spans.append((len(asked), stop + len(END_OF_UTTERANCE)))
    encoding = processor.tokenizer.read(whole)
    answers = [-1] * len(encoding.ids)
    found = 0
    for token, (first, last) in enumerate(encoding.offsets):
        while found < len(spans) and first >= spans[found][1]:
            found += 1
        if found == len(spans) or last <= spans[found][0]:
            continue
        if first < spans[found][0]:
            raise TemplateError(
                f"the tokenizer reads {whole[first:last]!r} as one token, of which only {whole[spans[found][0] : last]!r} "
                f"is the answer in message {learned[found]} of {sample.name}"
            )
        answers[token] = found
    return Labelled(prompt, tuple(encoding.ids), tuple(answers))
