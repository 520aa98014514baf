"""The checks of the way that answers take: models of both families pass, and each break of the engine or of sight is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import idefics
import idefics.engine.eyes
import idefics.engine.graphs
import idefics.engine.paged_cache
import idefics.engine.runner
from fakes import tiny_idefics
from idefics.api import Idefics
from idefics.engine.blocks import BlockPool
from idefics.engine.eyes import Picture, Source
from idefics.engine.graphs import StaticPass
from idefics.engine.paged_cache import PagedKVCache, PagedPass
from idefics.engine.runner import Runner
from idefics.engine.scheduler import Scheduler
from idefics.engine.sequences import AnswerInMaking, Slice
from idefics.model.idefics1 import Idefics1
from idefics.model.idefics2 import Idefics2
from idefics.model.sight import Placed, Sight
from idefics.selftest import answering, sight, vision
from idefics.selftest.checks import Check
from idefics.selftest.run import attempt
from idefics.selftest.subject import Subject
from idefics.weights.create import create_checkpoint
from idefics.weights.init import initialize

Mutation = Callable[[pytest.MonkeyPatch], None]
Cases = list[tuple[str, Mutation, Callable[[Subject], Check]]]

BROKEN: Cases = []
BROKEN_STEPS: Cases = []
FAMILIES = ("idefics2", "idefics")


def caught_by(
    *checks: Callable[[Subject], Check], families: Sequence[str] = FAMILIES, cases: Cases = BROKEN
) -> Callable[[Mutation], Mutation]:
    def register(mutation: Mutation) -> Mutation:
        cases.extend((family, mutation, check) for family in families for check in checks)
        return mutation

    return register


@pytest.fixture(scope="module")
def idefics1(tmp_path_factory: pytest.TempPathFactory) -> Idefics:
    found = idefics.load(create_checkpoint("tiny-random-idefics", tmp_path_factory.mktemp("answering") / "tiny"), packed=False)
    initialize(found.model, seed=1, std=0.2)  # every part matters to the output, as after training
    return found


@pytest.fixture(scope="module")
def loaded(idefics1: Idefics) -> dict[str, Idefics]:
    return {"idefics2": tiny_idefics(std=0.2), "idefics": idefics1}


# Images


# What `sight` gets wrong for all alike is wrong in whole prompts too: there the decoder's inputs are looked at.


@caught_by(vision.swapped_images, families=["idefics2"])
def sight_is_one_latent_late(patch: pytest.MonkeyPatch) -> None:
    honest = Idefics2.sight
    late = lambda at_BT: torch.where(at_BT > 0, at_BT - 1, at_BT)  # noqa: E731
    patch.setattr(Idefics2, "sight", lambda self, projected, at_BT: honest(self, projected, late(at_BT)))


@caught_by(vision.swapped_images, families=["idefics2"])
def latents_stand_in_reverse(patch: pytest.MonkeyPatch) -> None:
    into = Placed.into
    patch.setattr(Placed, "into", lambda self, x_BTD: into(replace(self, latents_XD=self.latents_XD.flip(0)), x_BTD))


@caught_by(vision.swapped_images, families=["idefics2"])
def latents_stand_nowhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Placed, "into", lambda _, x_BTD: x_BTD)


@caught_by(sight.last_image_only, families=["idefics"])
def sight_is_of_the_first_image(patch: pytest.MonkeyPatch) -> None:
    honest = Idefics1.sight
    patch.setattr(Idefics1, "sight", lambda self, projected, at_BT: honest(self, projected, at_BT.clamp(max=0)))


# What it gets wrong where tokens of several requests are packed, or an image is cut, is not.


@caught_by(answering.answers_equal_full, families=["idefics2"])
def sight_of_a_cut_image_begins_anew(patch: pytest.MonkeyPatch) -> None:
    honest = Idefics2.sight

    def anew(self: Idefics2, projected: tuple[Tensor, ...], at_BT: Tensor) -> Sight | None:
        first = at_BT[at_BT >= 0].min() if (at_BT >= 0).any() else 0
        return honest(self, projected, torch.where(at_BT >= 0, at_BT - first, at_BT))

    patch.setattr(Idefics2, "sight", anew)


@caught_by(answering.answers_equal_full, families=["idefics2"])
def sight_of_a_pass_is_of_its_last_image(patch: pytest.MonkeyPatch) -> None:
    honest = Idefics2.sight

    def last(self: Idefics2, projected: tuple[Tensor, ...], at_BT: Tensor) -> Sight | None:
        each, images = self.sources_per_image, len(projected[0])
        beyond = (at_BT >= 0) & (images > 2)  # no prompt whole has so many
        return honest(self, projected, torch.where(beyond, at_BT % each + (images - 1) * each, at_BT))

    patch.setattr(Idefics2, "sight", last)


@caught_by(answering.answers_equal_full, families=["idefics"])
def answers_are_blind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Idefics1, "sources_remain", False)


@caught_by(answering.answers_equal_full)
def images_of_a_pass_in_reverse(patch: pytest.MonkeyPatch) -> None:
    side_by_side = idefics.engine.eyes.side_by_side
    patch.setattr(idefics.engine.runner, "side_by_side", lambda shown: side_by_side(shown[::-1]))


@caught_by(answering.answers_equal_full)
def images_of_passes_before(patch: pytest.MonkeyPatch) -> None:
    """What stands side by side for a pass is kept for all that follow."""
    side_by_side = idefics.engine.eyes.side_by_side
    kept: dict[int, Picture] = {}
    patch.setattr(
        idefics.engine.runner,
        "side_by_side",
        lambda shown: side_by_side([kept.setdefault(place, picture) for place, picture in enumerate(shown)]),
    )


@caught_by(answering.answers_equal_full)
def images_of_one_shape_are_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(idefics.engine.eyes, "image_digest", lambda image: bytes(image.shape[-1:]))


@caught_by(answering.answers_equal_full)
def sources_of_a_piece_begin_anew(patch: pytest.MonkeyPatch) -> None:
    of = Source.of
    patch.setattr(Source, "of", lambda self, start, tokens: of(self, 0 if start < len(self.drawn) else start, tokens))


# Blocks


@caught_by(answering.second_turn_equals_full)
def blocks_named_without_their_images(patch: pytest.MonkeyPatch) -> None:
    named = AnswerInMaking.named

    def by_ids(self: AnswerInMaking, blocks: int, size: int) -> list[bytes]:
        self.drawn, self.drawn_after = [None] * len(self.drawn), None
        return named(self, blocks, size)

    patch.setattr(AnswerInMaking, "named", by_ids)


@caught_by(answering.second_turn_equals_full)
def blocks_are_never_found(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(BlockPool, "find", lambda *_: [])


@caught_by(answering.second_turn_equals_full)
def a_beginning_is_found_one_token_too_long(patch: pytest.MonkeyPatch) -> None:
    admit = Scheduler._admit

    def skipping(self: Scheduler, answer: AnswerInMaking, left: int) -> bool:
        admitted = admit(self, answer, left)
        answer.computed += bool(answer.computed)
        return admitted

    patch.setattr(Scheduler, "_admit", skipping)


@caught_by(answering.second_turn_equals_full)
def what_follows_a_beginning_is_placed_anew(patch: pytest.MonkeyPatch) -> None:
    """Pieces of a prompt after the first are told positions from 0."""
    pass_over = PagedKVCache.pass_over

    def from_nothing(self: PagedKVCache, segments: Sequence[Any]) -> PagedPass:
        return pass_over(self, [replace(s, past=0) if s.tokens > 1 else s for s in segments])

    patch.setattr(PagedKVCache, "pass_over", from_nothing)


@caught_by(answering.answers_equal_full, answering.second_turn_equals_full)
def heads_of_blocks_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    rows_of = PagedKVCache.rows_of
    patch.setattr(PagedKVCache, "rows_of", lambda self, blocks: rows_of(self, blocks).flip(-2))


@caught_by(answering.answers_equal_full)
def tables_begin_with_the_second_block(patch: pytest.MonkeyPatch) -> None:
    groups = PagedPass._groups

    def rolled(self: PagedPass, singles: Sequence[Any]) -> list[Any]:
        return groups(self, [replace(s, blocks=[*s.blocks[1:], s.blocks[0]]) for s in singles])

    patch.setattr(PagedPass, "_groups", rolled)


@caught_by(answering.answers_equal_full, answering.requests_apart)
def rows_look_at_their_neighbours_blocks(patch: pytest.MonkeyPatch) -> None:
    groups = PagedPass._groups

    def swapped(self: PagedPass, singles: Sequence[Any]) -> list[Any]:
        others = [*singles[1:], *singles[:1]]
        mixed = [replace(s, blocks=[*o.blocks, *s.blocks][: len(s.blocks)]) for s, o in zip(singles, others, strict=True)]
        return groups(self, mixed)

    patch.setattr(PagedPass, "_groups", swapped)


# Masks


@caught_by(answering.requests_apart)
def a_pass_is_one_text(patch: pytest.MonkeyPatch) -> None:
    """What came out of attention is smeared over all tokens of the pass."""
    attend = PagedPass.attend

    def smeared(self: PagedPass, *given: Any, **options: Any) -> Tensor:
        out_BHTK = attend(self, *given, **options)
        return out_BHTK + 0.01 * out_BHTK.mean(2, keepdim=True)

    patch.setattr(PagedPass, "attend", smeared)


def _longer_window(patch: pytest.MonkeyPatch, by: int) -> None:
    mask = idefics.engine.paged_cache.causal_mask

    def changed(**given: Any) -> Tensor | None:
        window = given["window"]
        return mask(**{**given, "window": window if window is None else window + by})

    patch.setattr(idefics.engine.paged_cache, "causal_mask", changed)


@caught_by(answering.answers_equal_full)
def pieces_see_what_follows(patch: pytest.MonkeyPatch) -> None:
    def everything(*, queries: int, past: int, device: torch.device, **_: Any) -> Tensor:
        return torch.ones(1, queries, past + queries, dtype=torch.bool, device=device)

    patch.setattr(idefics.engine.paged_cache, "causal_mask", everything)


@caught_by(answering.paged_window_respected, families=["idefics2"])
def window_of_pieces_too_long(patch: pytest.MonkeyPatch) -> None:
    _longer_window(patch, 1)


@caught_by(answering.paged_window_respected, families=["idefics2"])
def window_of_pieces_too_short(patch: pytest.MonkeyPatch) -> None:
    _longer_window(patch, -1)


def _window(patch: pytest.MonkeyPatch, change: Callable[[int | None], int | None]) -> None:
    make = PagedKVCache.__init__

    def changed(self: PagedKVCache, *given: Any, **options: Any) -> None:
        make(self, *given, **options)
        self.window = change(self.window)

    patch.setattr(PagedKVCache, "__init__", changed)


@caught_by(answering.paged_window_respected, families=["idefics2"])
@caught_by(answering.paged_window_respected, families=["idefics2"], cases=BROKEN_STEPS)
def paged_window_ignored(patch: pytest.MonkeyPatch) -> None:
    _window(patch, lambda _: None)


@caught_by(answering.paged_window_respected, families=["idefics2"])
def window_of_the_newest_too_long(patch: pytest.MonkeyPatch) -> None:
    groups = PagedPass._groups

    def longer(self: PagedPass, singles: Sequence[Any]) -> list[Any]:
        found = groups(self, singles)
        for group in found:
            group.mask_R1S[..., :-1] |= group.mask_R1S[..., 1:].clone()
        return found

    patch.setattr(PagedPass, "_groups", longer)


# Steps with static shapes, which a GPU records


@caught_by(answering.paged_window_respected, families=["idefics2"], cases=BROKEN_STEPS)
def window_of_a_step_too_short(patch: pytest.MonkeyPatch) -> None:
    paged = idefics.engine.graphs.paged_attention
    patch.setattr(
        idefics.engine.graphs, "paged_attention", lambda *q, window, **given: paged(*q, window=window and window - 1, **given)
    )


@caught_by(answering.second_turn_equals_full, families=["idefics2"], cases=BROKEN_STEPS)
def a_step_writes_nothing(patch: pytest.MonkeyPatch) -> None:
    start = StaticPass.start

    def to_scratch(self: StaticPass, tokens: int, key_mask_BS: Tensor | None, device: torch.device) -> None:
        start(self, tokens, key_mask_BS, device)
        self._slots_X = torch.full_like(self._slots_X, self._cache.scratch * self._cache.size * self._cache.heads)

    patch.setattr(StaticPass, "start", to_scratch)


@caught_by(answering.second_turn_equals_full, families=["idefics2"], cases=BROKEN_STEPS)
def a_step_is_one_place_late(patch: pytest.MonkeyPatch) -> None:
    table = idefics.engine.graphs.DecodeGraphs._table

    def late(self: Any, *given: Any) -> Tensor:
        rows_RX = table(self, *given)
        rows_RX[:, idefics.engine.graphs.PLACE] -= 1
        return rows_RX

    patch.setattr(idefics.engine.graphs.DecodeGraphs, "_table", late)


@pytest.mark.parametrize("graphs", [None, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_right_models_pass(loaded: dict[str, Idefics], family: str, graphs: bool | None) -> None:
    subject = Subject(loaded[family], graphs=graphs)
    for name in answering.__all__:
        check = attempt(name, getattr(answering, name), subject)
        assert check.passed, check


def test_steps_with_static_shapes_are_walked(loaded: dict[str, Idefics], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    run = idefics.engine.graphs.DecodeGraphs.run

    def counted(self: Any, ids: Sequence[int], segments: Sequence[Any]) -> Tensor | None:
        rows.append(len(ids))
        return run(self, ids, segments)

    monkeypatch.setattr(idefics.engine.graphs.DecodeGraphs, "run", counted)
    subject = Subject(loaded["idefics2"], graphs=True)
    assert attempt("turn", answering.second_turn_equals_full, subject).passed
    assert rows.count(4) >= 2, "all four answers step together"


def test_prompts_share_passes_and_are_cut_by_them(loaded: dict[str, Idefics], monkeypatch: pytest.MonkeyPatch) -> None:
    """Or less would be proven than is said."""
    passes: list[Sequence[Slice]] = []
    images: list[int] = []
    run, side_by_side = Runner.run, idefics.engine.eyes.side_by_side
    monkeypatch.setattr(Runner, "run", lambda self, slices: (passes.append(slices), run(self, slices))[1])
    monkeypatch.setattr(
        idefics.engine.runner,
        "side_by_side",
        lambda shown: (images.append(len({p.digest for p in shown})), side_by_side(shown))[1],
    )
    for family in FAMILIES:
        passes.clear()
        images.clear()
        assert attempt("full", answering.answers_equal_full, Subject(loaded[family])).passed
        assert max(images) > 1, "different images in one pass"
        assert any(sum(len(piece.ids) > 1 for piece in now) > 1 for now in passes), "several prompts are read in one pass"
        assert any(len({len(piece.ids) > 1 for piece in now}) == 2 for now in passes), "and while others answer"
        cut = [piece for now in passes for piece in now if piece.end < piece.answer.prompt]
        drawn = [piece.answer.drawn[piece.end - 1 : piece.end + 1] for piece in cut]
        assert any(before is not None and before == after for before, after in drawn), "an image is cut"


@pytest.mark.parametrize(("family", "mutation", "check"), BROKEN, ids=[f"{f}-{m.__name__}-{c.__name__}" for f, m, c in BROKEN])
def test_every_break_is_seen(
    loaded: dict[str, Idefics],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    mutation: Mutation,
    check: Callable[[Subject], Check],
) -> None:
    mutation(monkeypatch)
    found = attempt(check.__name__, check, Subject(loaded[family]))
    assert not found.passed
    assert found.measured != "stopped", found.explanation


@pytest.mark.parametrize(("family", "mutation", "check"), BROKEN_STEPS, ids=[m.__name__ for _, m, _ in BROKEN_STEPS])
def test_every_break_of_a_step_is_seen(
    loaded: dict[str, Idefics],
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    mutation: Mutation,
    check: Callable[[Subject], Check],
) -> None:
    mutation(monkeypatch)
    found = attempt(check.__name__, check, Subject(loaded[family], graphs=True))
    assert not found.passed
    assert found.measured != "stopped", found.explanation


def test_every_check_of_answering_is_seen_to_fail() -> None:
    assert set(answering.__all__) <= {check.__name__ for _, _, check in BROKEN}
