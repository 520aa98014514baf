"""What must hold for every model and every backend, as assertions. `idefics verify` runs the same code.

    assert_cache_matches_full(idefics.load(folder))

Each function takes a loaded model and fails with what was measured, what is allowed and what it would do to answers.
`tests/unit/selftest/test_mutations.py` breaks a model in every way that is listed there and sees these fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from idefics.api import Idefics
from idefics.selftest import answers, decoding, files, vision
from idefics.selftest.checks import Check
from idefics.selftest.run import attempt
from idefics.selftest.subject import Subject
from idefics.weights.rename import RenameTable


def result(check: Callable[[Subject], Check], loaded: Idefics) -> Check:
    """One check of one model, on material of its own."""
    return attempt(check.__name__, check, Subject(loaded))


def assert_all_hold(loaded: Idefics, checks: Iterable[Callable[[Subject], Check]]) -> None:
    subject = Subject(loaded)
    failed = [found for found in (attempt(c.__name__, c, subject) for c in checks) if not found.passed]
    assert not failed, "\n".join(f"{c.name}: {c.measured}, allowed {c.allowed}: {c.explanation}" for c in failed)


def assert_batch_matches_single(loaded: Idefics) -> None:
    """Rows with no image, one and two answer together as each alone."""
    assert_all_hold(loaded, [decoding.batch_equals_single, decoding.positions_count_tokens])


def assert_cache_matches_full(loaded: Idefics) -> None:
    """A prompt in pieces, cut in text and inside an image, gives what it gives at once."""
    assert_all_hold(loaded, [decoding.cache_equals_full, decoding.window_respected, answers.greedy_repeatable])


def assert_padding_is_inert(loaded: Idefics) -> None:
    """Neither padded ids nor padded pixels nor partial patches change anything."""
    assert_all_hold(loaded, [decoding.padding_inert, vision.pixel_padding_inert, vision.partial_patches_ignored])


def assert_images_isolated(loaded: Idefics) -> None:
    """Images do not see each other, and their latents stand where their tokens are."""
    assert_all_hold(loaded, [vision.images_isolated, vision.swapped_images])


def assert_split_parity(loaded: Idefics) -> None:
    """With splitting, tokens and pixels move together."""
    assert_all_hold(loaded, [vision.split_parity])


def assert_image_matters(loaded: Idefics) -> None:
    """Another image, or another order of images, gives other logits."""
    assert_all_hold(loaded, [answers.depends_on_image, answers.depends_on_order])


def assert_files_agree(loaded: Idefics) -> None:
    """Tokenizer, processor, configs and template belong together."""
    names = ("ids_in_range", "parts_agree", "special_tokens_round_trip", "segments_start_anew", "chat_template_renders")
    assert_all_hold(loaded, [getattr(files, name) for name in names])


def assert_rename_is_bijective(table: RenameTable, published: Iterable[str], ours: Iterable[str]) -> None:
    """A table maps these published names onto these names of ours one to one, and back."""
    published, ours = list(published), list(ours)
    kept = [name for name in published if table.ours(name) is not None]
    mapped = [table.ours(name) for name in kept]
    assert len(set(mapped)) == len(mapped), "two published names meet in one of ours"
    assert set(mapped) == set(ours), f"not both ways: {sorted(map(str, set(mapped) ^ set(ours)))}"
    for name in ours:
        assert table.ours(table.published(name)) == name
    for name in kept:
        assert table.published(str(table.ours(name))) == name
