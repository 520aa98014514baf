"""How questions are put: many phrasings of each, and the small liberties that people take when typing."""

from __future__ import annotations

import numpy as np

from idefics.data.sources.drawings.chance import chance, pick
from idefics.data.sources.drawings.shapes import PLURALS

__all__ = ["NUMERALS", "PHRASINGS", "SMALL_TALK", "some", "typed", "word", "worded"]

NUMERALS = ("no", "one", "two", "three", "four", "five", "six")
"""Counts as words, for descriptions."""

# {w} is where: "", " here", " in the picture", " in the first image". {x} is the subject of the question.
PHRASINGS: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is {x}{w}?",
        "Which color is {x}{w}?",
        "What is the color of {x}{w}?",
        "What color does {x}{w} have?",
        "Tell me the color of {x}{w}.",
        "Name the color of {x}{w}.",
        "Which color does {x}{w} have?",
        "Say what color {x}{w} is.",
    ),
    "shape": (
        "What shape is {x}{w}?",
        "Which shape is {x}{w}?",
        "What is the shape of {x}{w}?",
        "What shape does {x}{w} have?",
        "Tell me the shape of {x}{w}.",
        "Name the shape of {x}{w}.",
        "Which shape does {x}{w} have?",
        "Say what shape {x}{w} is.",
    ),
    "shape beside": (
        "What shape is next to the number{w}?",
        "Which shape is beside the number{w}?",
        "What shape do you see besides the number{w}?",
        "Name the shape near the number{w}.",
        "Tell me which shape is drawn with the number{w}.",
        "Apart from the number, what shape is there{w}?",
    ),
    "thing": (
        "What is this?",
        "What do you see?",
        "What is shown here?",
        "What is it?",
        "What's this?",
        "What can you see in the image?",
        "What is in the picture?",
        "Tell me what this is.",
        "Name the thing in this image.",
        "What does the image show?",
    ),
    "thing of two": (
        "What is{w}?",
        "What do you see{w}?",
        "What is shown{w}?",
        "What can you see{w}?",
        "What's{w}?",
        "Tell me what is{w}.",
        "Name the thing{w}.",
    ),
    "count": (
        "How many {x} are there{w}?",
        "How many {x} do you see{w}?",
        "How many {x} can you see{w}?",
        "Count the {x}{w}.",
        "What is the number of {x}{w}?",
        "Tell me how many {x} there are{w}.",
        "How many {x} are shown{w}?",
        "Give me the count of {x}{w}.",
    ),
    "number": (
        "What number is written{w}?",
        "Read the number{w}.",
        "What number is it{w}?",
        "What number do you see{w}?",
        "Which number is shown{w}?",
        "What is the number{w}?",
        "Which number is printed{w}?",
        "Tell me the number{w}.",
        "What does the number{w} say?",
    ),
    "sign": (
        "What does the sign{w} say?",
        "Read the sign{w}.",
        "What is written on the sign{w}?",
        "Which number is on the sign{w}?",
        "What number does the sign{w} show?",
        "What does the plate{w} say?",
    ),
    "is there": (
        "Is there {x}{w}?",
        "Do you see {x}{w}?",
        "Can you see {x}{w}?",
        "Is {x} shown{w}?",
        "Is there {x} to be seen{w}?",
        "Does {x} appear{w}?",
        "Tell me if there is {x}{w}.",
    ),
    "are there": (
        "Are there {x}{w}?",
        "Are there exactly {x}{w}?",
        "Do you count {x}{w}?",
        "Can you count {x}{w}?",
        "Is it true that there are {x}{w}?",
        "Would you say that there are {x}{w}?",
    ),
    "is it number": (
        "Is the number {x}{w}?",
        "Is it the number {x}{w}?",
        "Does it say {x}{w}?",
        "Is {x} written{w}?",
        "Do you see the number {x}{w}?",
        "Is this number {x}{w}?",
    ),
    "describe": (
        "Describe {i}.",
        "Describe what you see in {i}.",
        "What does {i} show?",
        "What is in {i}?",
        "Give me a description of {i}.",
        "Tell me what is in {i}.",
        "List everything in {i}.",
        "Caption {i}.",
    ),
    "which": (
        "Which {i} shows {x}?",
        "Which {i} has {x}?",
        "In which {i} is there {x}?",
        "Which {i} contains {x}?",
        "Which of the two {i}s shows {x}?",
        "In which {i} do you see {x}?",
        "Tell me which {i} has {x}.",
        "Where is {x}, in the first or the second {i}?",
    ),
    "which more": (
        "Which {i} has more objects?",
        "Which {i} shows more objects?",
        "In which {i} are there more objects?",
        "Which of the two {i}s has more objects?",
        "Where are more objects, in the first or the second {i}?",
        "Tell me which {i} contains more objects.",
    ),
    "and color": (
        "And what color is it?",
        "And the color?",
        "What color is it?",
        "And which color?",
        "What is its color?",
        "And its color?",
        "Which color does it have?",
        "What about its color?",
    ),
    "and shape": (
        "And what shape is it?",
        "And the shape?",
        "What shape is it?",
        "And which shape?",
        "What is its shape?",
        "And its shape?",
        "Which shape does it have?",
        "What about its shape?",
    ),
}

SMALL_TALK: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("hello, show me an image", ("Hello", "Hi", "Hello!", "Hi there!", "Hey", "Good morning", "Good evening!", "Hello there")),
    (
        "i am idefics2-nano, a small model that sees shapes, colors and numbers",
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Who am I talking to?",
            "Introduce yourself.",
            "What's your name?",
        ),
    ),
    (
        "i can name shapes and colors, count objects, read numbers and compare two images",
        (
            "What can you do?",
            "How can you help me?",
            "What are you good at?",
            "Help",
            "What do you know?",
            "What can I ask you?",
        ),
    ),
    (
        "you are welcome",
        ("Thank you", "Thanks!", "Thanks a lot", "Thank you very much.", "Great, thanks", "Thank you so much!"),
    ),
    ("goodbye", ("Goodbye", "Bye", "Bye!", "See you later.", "See you!", "Good night")),
    (
        "fine, thank you",
        ("How are you?", "How are you doing?", "How is it going?", "Are you well?", "How do you do?", "You OK?"),
    ),
    (
        "no, show me an image and i will look at it",
        (
            "Can you see me?",
            "Do you see anything?",
            "Can you see an image?",
            "Do you see my picture?",
            "Did you get the image?",
            "Is there an image?",
        ),
    ),
    (
        "circle, square, triangle, star, heart, diamond, cross and moon",
        (
            "Which shapes do you know?",
            "What shapes can you see?",
            "Name the shapes that you know.",
            "List your shapes.",
            "Which shapes can you name?",
            "What shapes do you recognise?",
        ),
    ),
)
"""Answers and the ways of getting them, without an image."""


def worded(rng: np.random.Generator, phrasing: str, **slots: str) -> str:
    """One of the phrasings, filled in and typed the way people type.

    Args:
        rng: source of chance.
        phrasing: key of `PHRASINGS`.
        slots: what the phrasing's braces stand for.
    """
    return typed(rng, pick(rng, PHRASINGS[phrasing]).format(**{"w": "", **slots}))


def typed(rng: np.random.Generator, sentence: str) -> str:
    """The sentence as a person may type it: perhaps politely, in lower case, British, or without its last mark."""
    if sentence.endswith(".") and chance(rng, 0.25):
        sentence = "Please " + sentence[0].lower() + sentence[1:]
    elif sentence.endswith("?") and not sentence.startswith("And") and chance(rng, 0.03):
        sentence = sentence[:-1] + ", please?"
    if chance(rng, 0.15):
        sentence = sentence[0].lower() + sentence[1:]
    if chance(rng, 0.12):
        sentence = sentence.rstrip("?.!")
    if chance(rng, 0.05):
        sentence = sentence.replace("color", "colour")
    return sentence


def word(what: str) -> str:
    """`what` with its indefinite article: `word("orange star")` is `"an orange star"`."""
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


def some(count: int, color: str, kind: str) -> str:
    """A group of like things: `"a red star"`, `"two blue squares"`."""
    return word(f"{color} {kind}") if count == 1 else f"{NUMERALS[count]} {color} {PLURALS[kind]}"
