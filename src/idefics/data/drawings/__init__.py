"""Drawings with known facts, and conversations about them: training and evaluation data that needs no download."""

from __future__ import annotations

from idefics.data.drawings.crowd import draw_crowd
from idefics.data.drawings.facts import PATCH_COLORS, PATCH_KINDS, Box, Crowd, Drawing, Number, Scene, Thing
from idefics.data.drawings.invent import Subject, invent_scene
from idefics.data.drawings.palette import COLORS
from idefics.data.drawings.placing import box_of
from idefics.data.drawings.questions import TASKS, Turn, conversation, corpus, questions_of, small_talk, tasks_of
from idefics.data.drawings.scene import draw_scene
from idefics.data.drawings.shapes import KINDS

__all__ = [
    "COLORS",
    "KINDS",
    "PATCH_COLORS",
    "PATCH_KINDS",
    "TASKS",
    "Box",
    "Crowd",
    "Drawing",
    "Number",
    "Scene",
    "Subject",
    "Thing",
    "Turn",
    "box_of",
    "conversation",
    "corpus",
    "draw_crowd",
    "draw_scene",
    "invent_scene",
    "questions_of",
    "small_talk",
    "tasks_of",
]
