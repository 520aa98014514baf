"""The scheduler and its blocks, against a cache that notes what was written where: random traces, in milliseconds each.

TRACES=10000 in the environment runs as many.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count

import pytest

from idefics.engine.blocks import BlockPool, block_digest
from idefics.engine.scheduler import Scheduler
from idefics.engine.sequences import AnswerInMaking, Slice
from idefics.engine.speculative import Lookup

TRACES = int(os.environ.get("TRACES", "300"))
VOCABULARY = 5  # few words, so that prompts share beginnings and guesses come true
IMAGES = (None, None, None, b"one", b"two")


def said(history: bytes) -> int:
    """What a model that knows everything before says next."""
    return blake2b(history, digest_size=2).digest()[0] % VOCABULARY


def history(answer: AnswerInMaking, length: int) -> bytes:
    """Everything that the token before `length` depends on."""
    drawn = [*answer.drawn, *[answer.drawn_after] * length][:length]
    return repr(list(zip(answer.ids[:length], drawn, strict=True))).encode()


@dataclass
class World:
    """A scheduler, and a cache whose slots hold what was true when they were written."""

    scheduler: Scheduler
    slots: dict[tuple[int, int], bytes] = field(default_factory=dict)
    passes: int = 0
    computed: int = 0
    shared: int = 0
    order: list[int] = field(default_factory=list)

    def run(self, *, guesses: int = 0) -> list[Slice]:
        """One pass: reads what it must, writes what it computes, says what comes next."""
        for answer in self.scheduler.running:
            answer.drafts = Lookup().after(answer.ids, guesses) if answer.decoding else []
            answer.drafts = answer.drafts[: answer.most - len(answer.ids) - 1] if guesses else []
        before = {id(a) for a in self.scheduler.waiting}
        running = list(self.scheduler.running)
        plan = self.scheduler.plan()
        self.check_order(running, plan)
        size = self.scheduler.pool.size
        assert sum(len(piece.ids) for piece in plan) <= self.scheduler.tokens
        assert len(self.scheduler.running) <= self.scheduler.rows
        for piece in plan:
            answer = piece.answer
            if id(answer) in before:
                self.shared += piece.start
            for place in range(piece.start):
                assert self.slots[answer.blocks[place // size], place % size] == history(answer, place + 1), "a wrong block"
            known = answer.ids
            answer.ids = [*known[: piece.start], *piece.ids]
            for place in range(piece.start, piece.start + len(piece.ids)):
                block = answer.blocks[place // size]
                assert self.scheduler.pool.users(block) == 1, "a shared block is written to"
                self.slots[block, place % size] = history(answer, place + 1)
                self.computed += 1
            guessed, answer.ids = answer.ids, known
            self._choose(piece, guessed)
        self.passes += bool(plan)
        self.check()
        return plan

    def _choose(self, piece: Slice, guessed: list[int]) -> None:
        answer, accepted = piece.answer, 0
        ended = False
        if piece.chooses:
            while True:
                answer.ids.append(said(history(answer, len(answer.ids))))
                ended = len(answer.ids) == answer.most
                right = accepted < piece.drafts and answer.ids[-1] == guessed[len(answer.ids) - 1]
                if ended or not right:
                    break
                accepted += 1
        self.scheduler.advance(piece, accepted=accepted)
        if ended:
            self.order.append(answer.request)
            self.scheduler.remove(answer)

    def check_order(self, running: list[AnswerInMaking], plan: list[Slice]) -> None:
        """The oldest of those that ran goes on in every pass, and nobody joins them unless each says something in it."""
        pieces = {id(piece.answer): piece for piece in plan}
        assert not running or id(running[0]) in pieces, "the oldest stands still"
        joined = {id(answer) for answer in self.scheduler.running} - {id(answer) for answer in running}
        says = [id(answer) in pieces and pieces[id(answer)].chooses for answer in running]
        assert not joined or all(says), "somebody came in over a running answer"
        stalled = any(a.decoding and id(a) not in pieces for a in self.scheduler.running)
        assert not stalled or not self.scheduler.pool.free, "a prompt stalls an answer"

    def check(self) -> None:
        """Every block is held as often as answers say, and the rest is free."""
        pool = self.scheduler.pool
        holds = [block for answer in self.scheduler.running for block in answer.blocks]
        assert all(pool.users(block) == holds.count(block) for block in range(pool.blocks))
        assert pool.free == pool.blocks - len(set(holds))
        assert not any(answer.blocks for answer in self.scheduler.waiting)


def request(rng: random.Random, arrival: int, *, longest: int) -> AnswerInMaking:
    """Prompts begin alike more often than not."""
    length = rng.randint(1, longest - 1)
    shared = random.Random(rng.randint(0, 2))
    common = [shared.randrange(VOCABULARY) for _ in range(length)]
    cut = rng.randint(0, length)
    ids = [*common[:cut], *(rng.randrange(VOCABULARY) for _ in range(length - cut))]
    image, start = rng.choice(IMAGES), rng.randint(0, length)
    drawn = [None if place < start else image for place in range(length)]
    most = min(longest, length + rng.randint(1, 12))
    after = image if rng.random() < 0.5 else None
    return AnswerInMaking(state=None, request=arrival, ids=ids, prompt=length, drawn=drawn, drawn_after=after, most=most)


def alone(answer: AnswerInMaking) -> list[int]:
    """The answer's ids, had it been the only one."""
    copy = AnswerInMaking(
        state=None, request=0, ids=answer.ids[: answer.prompt], prompt=answer.prompt, drawn=answer.drawn,
        drawn_after=answer.drawn_after, most=answer.most,
    )  # fmt: skip
    while len(copy.ids) < copy.most:
        copy.ids.append(said(history(copy, len(copy.ids))))
    return copy.ids


def trace(seed: int) -> World:
    """Requests of all kinds join, leave and are cancelled at random."""
    rng = random.Random(seed)
    size, blocks = rng.choice((1, 2, 4, 8)), rng.randint(2, 24)
    rows = rng.randint(1, 6)
    world = World(Scheduler(BlockPool(blocks, size), tokens=rng.randint(rows, 30), rows=rows))
    guesses = rng.choice((0, 0, 3))
    answers: list[AnswerInMaking] = []
    while len(answers) < 12 or world.scheduler.running or world.scheduler.waiting:
        if len(answers) < 12 and rng.random() < 0.5:
            answer = request(rng, len(answers), longest=min(blocks * size, 40))
            answer.leader = answers[-1] if answers and rng.random() < 0.2 else None
            if answer.leader is not None:  # another answer to the same prompt
                answer.leader = answer.leader.leader or answer.leader
                first = answer.leader
                answer.ids, answer.prompt, answer.drawn = first.ids[: first.prompt], first.prompt, first.drawn
                answer.drawn_after, answer.most = first.drawn_after, first.most
            answers.append(answer)
            world.scheduler.add(answer)
        if answers and rng.random() < 0.05:
            world.scheduler.remove(rng.choice(answers))
        plan = world.run(guesses=guesses)
        assert plan or not (world.scheduler.running or world.scheduler.waiting), "nothing moves"
        assert world.passes < 5_000, "it does not end"
    for answer in answers:
        assert answer.done
        assert alone(answer)[: len(answer.ids)] == answer.ids, "what was said depends on the company"
    assert world.scheduler.pool.free == blocks, "a block is lost"
    return world


def test_random_traces() -> None:
    worlds = [trace(seed) for seed in range(TRACES)]
    assert sum(world.scheduler.preemptions for world in worlds) > TRACES / 4, "nobody was interrupted"
    assert sum(world.shared for world in worlds) > TRACES, "nothing was shared"


def test_the_eldest_ends_first_and_nobody_waits_for_ever() -> None:
    rng = random.Random(0)
    world = World(Scheduler(BlockPool(6, 4), tokens=8, rows=4))
    oldest = request(rng, 0, longest=24)
    oldest.most = 24
    world.scheduler.add(oldest)
    arrival = 1
    while not oldest.done:  # newcomers without end
        world.scheduler.add(request(rng, arrival, longest=12))
        arrival += 1
        world.run()
        assert world.passes < 200
    assert world.passes < 60


def text(row: int, *, prompt: int, answer: int, first: int = 0) -> AnswerInMaking:
    """A prompt that counts on from `first`, without images."""
    ids = list(range(first, first + prompt))
    return AnswerInMaking(state=None, request=row, ids=ids, prompt=prompt, drawn=[None] * prompt, most=prompt + answer)


def overtook(world: World, answer: AnswerInMaking) -> int:
    """How many younger answers ended before this one."""
    return sum(row > answer.request for row in world.order[: world.order.index(answer.request)])


def test_newcomers_without_end_do_not_starve_an_older_prompt() -> None:
    world = World(Scheduler(BlockPool(9, 4), tokens=16, rows=5))
    arrivals = count()
    for more in (2, 3, 4):
        row = next(arrivals)
        world.scheduler.add(text(row, prompt=5, answer=more, first=1_000 * row))
    long = text(next(arrivals), prompt=27, answer=2, first=3_000)
    world.scheduler.add(long)
    while not long.done:
        if len(world.scheduler.waiting) < 2:
            row = next(arrivals)
            world.scheduler.add(text(row, prompt=5, answer=4, first=1_000 * row))
        world.run()
        assert world.passes < 20, "it starves"
    assert overtook(world, long) == 0
    assert alone(long) == long.ids


def crowd(seed: int, scheduler: type[Scheduler]) -> None:
    """A small pool at which somebody always waits: the first six answers end, however many come after them.

    The oldest one computes a token in every pass, so that an answer ends after as many passes as it and those before it have
    tokens. Younger ones join only in passes in which it says something, fewer than `rows` in each: no more can overtake it.
    """
    rng = random.Random(seed)
    size, blocks, rows = rng.choice((2, 4)), rng.randint(6, 12), rng.randint(3, 6)
    world = World(scheduler(BlockPool(blocks, size), tokens=rng.randint(rows, 30), rows=rows))
    guesses, longest = rng.choice((0, 0, 3)), min(blocks * size, 40)
    alike, prompt, answers = rng.random() < 0.5, rng.randint(1, 2 * size), rng.randint(1, 5)
    first: list[AnswerInMaking] = []
    bounds: list[int] = []
    arrivals = count()
    while len(first) < 6 or not all(answer.done for answer in first):
        while len(world.scheduler.waiting) < 2:
            row = next(arrivals)
            if row < 6 and rng.random() < 0.3:
                answer = text(row, prompt=rng.randint(longest // 2, longest - 2), answer=rng.randint(1, 2))
            elif alike:  # the early ones say less, so that they end one after the other
                answer = text(row, prompt=prompt, answer=max(1, answers - (row < 4) * rng.randint(0, 2)), first=row)
            else:
                answer = request(rng, row, longest=longest if rng.random() < 0.2 else longest // 3)
            world.scheduler.add(answer)
            if len(first) < 6:
                first.append(answer)
                bounds.append(world.passes + sum(a.most for a in first if not a.done))
        world.run(guesses=guesses)
        assert all(answer.done or world.passes < bound for answer, bound in zip(first, bounds, strict=True)), "it starves"
    for answer in first:
        assert overtook(world, answer) <= (rows - 1) * (answer.most - answer.prompt)
        assert alone(answer) == answer.ids, "what was said depends on the company"


def crowds(scheduler: type[Scheduler] = Scheduler) -> None:
    for seed in range(TRACES):
        crowd(seed, scheduler)


def test_nobody_waits_for_ever_whoever_comes() -> None:
    crowds()


class Polite(Scheduler):
    """Interrupts nobody."""

    def _grow(self, answer: AnswerInMaking, most: int) -> int:
        return super()._grow(answer, most) if self._room(answer) else 0


class Hospitable(Scheduler):
    """Lets newcomers in whenever they fit."""

    def plan(self) -> list[Slice]:
        slices = super().plan()
        left = self.tokens - sum(len(piece.ids) for piece in slices)
        for answer in list(self.waiting):
            if left and len(self.running) < self.rows and self._admit(answer, left):
                slices.append(self._slice(answer, left))
                left -= len(slices[-1].ids)
        return slices


@pytest.mark.parametrize(("policy", "harm"), [(Polite, "the oldest stands still"), (Hospitable, "somebody came in over")])
def test_neither_politeness_nor_hospitality_will_do(policy: type[Scheduler], harm: str) -> None:
    with pytest.raises(AssertionError, match=harm):
        crowds(policy)


def test_an_older_prompt_takes_blocks_of_younger_answers_that_decode() -> None:
    world = World(Scheduler(BlockPool(6, 4), tokens=12, rows=4))
    long, young = text(0, prompt=20, answer=4), text(1, prompt=3, answer=17, first=100)
    world.scheduler.add(young)
    for _ in range(8):
        world.run()
    world.scheduler.add(long)  # its number was given before, its images took longer
    sizes = [[(piece.answer.request, len(piece.ids)) for piece in world.run()] for _ in range(3)]
    assert sizes == [[(1, 1), (0, 11)], [(0, 1), (1, 1)], [(0, 8)]]
    assert world.scheduler.preemptions == 1
    while world.run():
        pass
    assert (alone(long), alone(young)) == (long.ids, young.ids)


def test_the_youngest_prompt_takes_no_blocks_that_it_would_lose_again() -> None:
    world = World(Scheduler(BlockPool(7, 4), tokens=12, rows=2))
    old, prompt = text(0, prompt=7, answer=6), text(1, prompt=20, answer=2, first=100)
    world.scheduler.add(old)
    world.run()
    world.scheduler.add(prompt)
    sizes = [[(piece.answer.request, len(piece.ids)) for piece in world.run()] for _ in range(6)]
    assert sizes == [[(0, 1), (1, 11)], *[[(0, 1)]] * 4, [(1, 9)]]
    assert world.scheduler.preemptions == 0


def test_a_prompt_for_which_no_token_is_left_interrupts_nobody() -> None:
    world = World(Scheduler(BlockPool(8, 1), tokens=3, rows=3))
    guessing, prompt, young = text(0, prompt=1, answer=6), text(1, prompt=6, answer=1), text(2, prompt=1, answer=6)
    for answer in (young, guessing, prompt):
        world.scheduler.add(answer)
        world.run()
    guessing.drafts = [0]
    assert [(piece.answer.request, len(piece.ids)) for piece in world.scheduler.plan()] == [(0, 2)]
    assert world.scheduler.preemptions == 0


def test_guesses_take_the_blocks_that_are_free_and_interrupt_nobody() -> None:
    world = World(Scheduler(BlockPool(5, 2), tokens=20, rows=2))
    pair = [text(row, prompt=3, answer=3, first=row) for row in range(2)]
    for answer in pair:
        world.scheduler.add(answer)
    world.run()
    for answer in pair:
        answer.drafts = [0, 0]
    plan = world.scheduler.plan()
    assert [(len(piece.ids), piece.drafts) for piece in plan] == [(3, 2), (1, 0)]
    assert world.scheduler.preemptions == 0


def test_a_long_prompt_does_not_stall_the_others() -> None:
    world = World(Scheduler(BlockPool(100, 4), tokens=8, rows=4))
    short = AnswerInMaking(state=None, request=0, ids=[1], prompt=1, drawn=[None], most=40)
    world.scheduler.add(short)
    world.run()
    world.scheduler.add(AnswerInMaking(state=None, request=1, ids=[2] * 100, prompt=100, drawn=[None] * 100, most=101))
    for _ in range(10):
        before = len(short.ids)
        plan = world.run()
        assert len(short.ids) == before + 1
        assert [len(piece.ids) for piece in plan] == [1, 7]


def test_guesses_leave_the_others_their_newest_tokens() -> None:
    world = World(Scheduler(BlockPool(100, 4), tokens=6, rows=4))
    answers = [
        AnswerInMaking(state=None, request=row, ids=[row % VOCABULARY], prompt=1, drawn=[None], most=60) for row in range(4)
    ]
    for answer in answers:
        world.scheduler.add(answer)
    world.run()
    while not any(answer.done for answer in answers):
        plan = world.run(guesses=9)
        assert {id(piece.answer) for piece in plan} >= {id(answer) for answer in answers if not answer.done}


def test_a_second_turn_computes_only_what_is_new() -> None:
    world = World(Scheduler(BlockPool(50, 4), tokens=100, rows=2))
    first = AnswerInMaking(state=None, request=0, ids=[1, 2, 3] * 8, prompt=24, drawn=[b"i"] * 24, most=30)
    world.scheduler.add(first)
    while not first.done:
        world.run()
    before = world.computed
    ids = [*first.ids, 4, 4, 4]
    drawn = [*[b"i"] * 24, *[None] * 9]
    second = AnswerInMaking(state=None, request=1, ids=list(ids), prompt=33, drawn=drawn, most=34)
    world.scheduler.add(second)
    world.run()
    assert world.computed - before == 33 - 28  # seven blocks of four were there
    other = AnswerInMaking(state=None, request=2, ids=list(ids), prompt=33, drawn=[*[b"j"] * 24, *[None] * 9], most=34)
    world.scheduler.add(other)
    before = world.computed
    world.run()
    assert world.computed - before == 33, "another image's blocks were taken"


def test_right_guesses_save_passes() -> None:
    passes = []
    for guesses in (0, 4):
        world = World(Scheduler(BlockPool(200, 4), tokens=50, rows=2))
        answer = AnswerInMaking(state=None, request=0, ids=[0], prompt=1, drawn=[None], most=120)
        world.scheduler.add(answer)
        while not answer.done:
            world.run(guesses=guesses)
        passes.append(world.passes)
    assert passes[1] < passes[0]


def test_doubted_blocks_are_to_be_wiped_by_whoever_takes_them() -> None:
    pool = BlockPool(4, 2)
    blocks = pool.take(3)
    pool.name(blocks[0], b"a")
    pool.doubt(blocks)
    pool.trust(blocks[1:2])
    pool.release(blocks)
    assert pool.find([b"a"]) == blocks[:1], "doubted, but what a like beginning holds"
    pool.release(blocks[:1])
    assert pool.unclean() == []
    pool.take(4)
    assert sorted(pool.unclean()) == sorted([blocks[0], blocks[2]])
    assert pool.unclean() == []
    assert not any(pool.doubts(block) for block in range(4))


def test_digests_tell_tokens_images_and_beginnings_apart() -> None:
    names = [
        block_digest(before, ids, drawn)
        for before in (b"", b"x" * 16)
        for ids in ((1, 2), (2, 1))
        for drawn in ((None, None), (b"a", None), (None, b"a"), (b"a", b"a"), (b"b", b"b"))
    ]
    assert len(set(names)) == len(names)
