"""Drawings with known facts, and conversations about them: training and evaluation data that needs no download."""

from __future__ import annotations

from idefics.data.sources.drawings.crowd import draw_crowd
from idefics.data.sources.drawings.facts import PATCH_COLORS, PATCH_KINDS, Box, Crowd, Drawing, Number, Scene, Thing
from idefics.data.sources.drawings.invent import Motif, invent_scene
from idefics.data.sources.drawings.palette import COLORS
from idefics.data.sources.drawings.placing import box_of
from idefics.data.sources.drawings.questions import TASKS, Exchange, conversation, corpus, questions_of, small_talk, tasks_of
from idefics.data.sources.drawings.samples import DrawnSamples, sample_of
from idefics.data.sources.drawings.scene import draw_scene
from idefics.data.sources.drawings.shapes import KINDS

__all__ = [
    "COLORS",
    "KINDS",
    "PATCH_COLORS",
    "PATCH_KINDS",
    "TASKS",
    "Box",
    "Crowd",
    "Drawing",
    "DrawnSamples",
    "Exchange",
    "Motif",
    "Number",
    "Scene",
    "Thing",
    "box_of",
    "conversation",
    "corpus",
    "draw_crowd",
    "draw_scene",
    "invent_scene",
    "questions_of",
    "sample_of",
    "small_talk",
    "tasks_of",
]
