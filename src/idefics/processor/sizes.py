"""How large images become and in how many pieces: arithmetic alone, usable before any image is opened."""

from __future__ import annotations

from collections.abc import Mapping

from idefics.config.rules import brief
from idefics.errors import ImageError, OptionError
from idefics.processor.call_options import plain

__all__ = ["Box", "check_size", "processed_sizes", "resized_size", "sub_image_boxes", "sub_images", "with_longest_edge"]

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, as Pillow has it."""

MAX_SIDE = 16_384
"""Pixels that every image may be enlarged to; no model sees a sixteenth of it."""

SPLIT = 5  # four quarters and the whole


def check_size(size: Mapping[str, int]) -> dict[str, int]:
    """The same size, once it is known to be usable.

    Args:
        size: `{"shortest_edge": ..., "longest_edge": ...}` in pixels, or a fixed `{"height": ..., "width": ...}`.

    Raises:
        OptionError: other keys, or values that are not positive whole numbers.
    """
    if not isinstance(size, Mapping):
        raise OptionError(f"size must be a mapping such as {{'shortest_edge': 378, 'longest_edge': 980}}, not {size!r}")
    known = {key: plain(value) for key, value in size.items() if value is not None}
    if set(known) not in ({"shortest_edge", "longest_edge"}, {"height", "width"}):
        raise OptionError(
            f"size = {brief(dict(size))} has not the right keys: 'shortest_edge' and 'longest_edge', or 'height' and 'width'"
        )
    for key, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(f"size[{key!r}] = {brief(value)} must be a positive whole number of pixels")
        if key != "longest_edge" and value > MAX_SIDE:  # the longest edge only bounds: images are never enlarged to it
            raise OptionError(f"size[{key!r}] = {brief(value)} is over the limit of {MAX_SIDE} pixels")
    if known.get("shortest_edge", 0) > known.get("longest_edge", 0):
        raise OptionError(
            f"size: shortest_edge = {known['shortest_edge']} is above longest_edge = {known['longest_edge']}, "
            "which no image can satisfy"
        )
    return known


def with_longest_edge(size: Mapping[str, int], longest: int) -> dict[str, int]:
    """A size with another longest edge; the shortest never exceeds it. A fixed height and width give way to a square limit.

    Raises:
        OptionError: `longest` is not a positive whole number.

    >>> with_longest_edge({"shortest_edge": 378, "longest_edge": 980}, 224)
    {'shortest_edge': 224, 'longest_edge': 224}
    """
    if isinstance(longest, bool) or not isinstance(longest, int) or longest < 1:
        raise OptionError(f"the longest edge of images must be a positive whole number of pixels, not {longest!r}")
    return {"shortest_edge": min(size.get("shortest_edge", longest), longest), "longest_edge": longest}


def resized_size(width: int, height: int, size: Mapping[str, int]) -> tuple[int, int]:
    """The (width, height) an image of `width` x `height` is resized to.

    The longer edge is brought down to `longest_edge` keeping the aspect ratio (truncated, never rounded), then both
    edges are raised to `shortest_edge`, each on its own: small or very long images lose their aspect ratio, as they
    did when the models were trained.

    >>> resized_size(1920, 1080, {"shortest_edge": 378, "longest_edge": 980})
    (980, 551)
    >>> resized_size(300, 200, {"shortest_edge": 378, "longest_edge": 980})
    (378, 378)
    """
    if "height" in size:
        return size["width"], size["height"]
    shortest, longest = size["shortest_edge"], size["longest_edge"]
    aspect_ratio = width / height
    if width >= height and width > longest:
        width, height = longest, int(longest / aspect_ratio)
    elif height > width and height > longest:
        width, height = int(longest * aspect_ratio), longest
    return max(width, shortest), max(height, shortest)


def sub_images(*, do_image_splitting: bool) -> int:
    """How many images the model sees for one image of the user."""
    return SPLIT if do_image_splitting else 1


def sub_image_boxes(width: int, height: int, *, do_image_splitting: bool) -> list[Box]:
    """The (left, top, right, bottom) of each sub-image: top-left, top-right, bottom-left, bottom-right, whole.

    Raises:
        ImageError: the image is too small to be split.
    """
    whole = (0, 0, width, height)
    if not do_image_splitting:
        return [whole]
    if width < 2 or height < 2:
        raise ImageError(
            f"an image of {width}x{height} pixels cannot be split in four: splitting needs 2 pixels on each side; "
            "use do_image_splitting=False for it"
        )
    x, y = width // 2, height // 2
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height), whole]


def processed_sizes(width: int, height: int, *, size: Mapping[str, int], do_image_splitting: bool) -> list[tuple[int, int]]:
    """The (width, height) of every sub-image as the model sees it.

    >>> processed_sizes(1920, 1080, size={"shortest_edge": 378, "longest_edge": 980}, do_image_splitting=True)
    [(960, 540), (960, 540), (960, 540), (960, 540), (980, 551)]
    """
    boxes = sub_image_boxes(width, height, do_image_splitting=do_image_splitting)
    return [resized_size(right - left, bottom - top, size) for left, top, right, bottom in boxes]
