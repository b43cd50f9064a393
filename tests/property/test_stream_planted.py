"""The state machine of test_stream_properties must fail on a planted defect: else it would prove nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.property.test_stream_properties import PARTITIONS, Role

from sluiceway.core import offsets, stream
from sluiceway.core.offsets import OffsetLedger
from sluiceway.core.stream import Order, Stream

Patch = Callable[[pytest.MonkeyPatch], None]
DEFECTS: dict[str, Patch] = {}


def defect(plant: Patch) -> Patch:
    DEFECTS[plant.__name__] = plant
    return plant


@defect
def watermark_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OffsetLedger, "watermark", property(lambda s: s._order[0] + 1 if s._order else s.position))


@defect
def watermark_is_the_newest_settled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(OffsetLedger, "watermark", property(lambda s: s.position - s.open))


@defect
def an_ended_epochs_job_is_settled(patch: pytest.MonkeyPatch) -> None:
    settle = Stream.settle

    def careless(self: Stream, job: Any, now: float) -> bool:
        held = self._held.get(job.held.partition)
        if held is not None:
            job.held = held
        return settle(self, job, now)

    patch.setattr(Stream, "settle", careless)


@defect
def an_ended_epochs_batch_is_taken(patch: pytest.MonkeyPatch) -> None:
    fetched = Stream.fetched

    def careless(self: Stream, partition: Any, _: int, records: Any, position: int, now: float) -> int:
        return fetched(self, partition, self.epoch(partition) or 0, records, position, now)

    patch.setattr(Stream, "fetched", careless)


@defect
def a_restored_map_that_is_not_reached_yet_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    finished = OffsetLedger.finished

    def forgetful(self: OffsetLedger) -> offsets.Ranges:
        return tuple(found for found in finished(self) if found[1] <= self.position)

    patch.setattr(OffsetLedger, "finished", forgetful)


@defect
def a_gap_in_the_map_is_closed(patch: pytest.MonkeyPatch) -> None:
    finished = OffsetLedger.finished

    def careless(self: OffsetLedger) -> offsets.Ranges:
        found = finished(self)
        return ((found[0][0], found[-1][1]),) if found else ()

    patch.setattr(OffsetLedger, "finished", careless)


@defect
def the_map_is_not_read_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stream, "decode_finished", lambda *_: ())


@defect
def what_a_drain_forgets_is_settled(patch: pytest.MonkeyPatch) -> None:
    forget = Stream._forget_queue

    def careless(self: Stream, held: Any) -> None:
        for job in list(held.queue._fresh):
            held.ledger.settle(job.record.offset)
        forget(self, held)

    patch.setattr(Stream, "_forget_queue", careless)


@defect
def two_commits_at_a_time(patch: pytest.MonkeyPatch) -> None:
    due = Stream.commit_due

    def careless(self: Stream, now: float, *, force: bool = False) -> Any:
        self.commits._under_way = False
        return due(self, now, force=force)

    patch.setattr(Stream, "commit_due", careless)


@defect
def a_failed_commit_counts_as_made(patch: pytest.MonkeyPatch) -> None:
    def careless(self: Stream, now: float, retry_after: float = 0.0) -> None:
        for held in self._held.values():
            held.committed_changes = held.changes
        self.commits._under_way = False
        self.commits._from = now + retry_after

    patch.setattr(Stream, "commit_failed", careless)


@defect
def a_job_runs_while_another_of_its_key_does(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(stream, "Order", SimpleNamespace(KEY=object(), PARTITION=Order.PARTITION))


@defect
def a_revoke_keeps_counting_what_ran(patch: pytest.MonkeyPatch) -> None:
    revoke = Stream.revoke

    def careless(self: Stream, partitions: Any) -> None:
        running = self.running
        revoke(self, partitions)
        self.running = running

    patch.setattr(Stream, "revoke", careless)


@defect
def a_full_queue_is_fetched_all_the_same(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "room", lambda _: 50)
    patch.setattr(Stream, "_pauses", lambda *_: [])
    patch.setattr(Stream, "_share", lambda *_: 50)


def wander(seed: int, steps: int = 150) -> None:
    """One seeded world of the same machine, with the weights of a busy worker: much work, few deaths."""
    dice = random.Random(seed)
    role = Role()
    role.begin(order=dice.choice(list(Order)))
    where, keys, answers = list(PARTITIONS), [None, b"a", b"b"], ["acked", "acked", "failed", "acked but nobody heard"]
    moves: list[tuple[int, Callable[[], object]]] = [
        (6, lambda: role.publish(dice.choice(where), dice.choice([0, 0, 0, 1, 3]), dice.choice(keys))),
        (5, lambda: role.late_batches or role.fetch(dice.randint(1, 4))),
        (1, lambda: role.fetch_and_hand_over_late(dice.randint(1, 4))),
        (1, lambda: role.late_batches and role.arrive_late()),
        (5, role.start),
        (7, lambda: role.running and role.ack(dice.randrange(10))),
        (1, lambda: role.late and role.late_ack(dice.randrange(10))),
        (3, lambda: role.commit(dice.choice([0.1, 1.0, 3.0]), dice.random() < 0.5)),
        (3, lambda: role.flight and role.commit_answer(dice.choice(answers))),
        (1, lambda: role.revoke_and_come_back(set(dice.sample(where, dice.randint(1, 3))), dice.random() < 0.7)),
        (1, lambda: dice.random() < 0.5 and role.crash()),
    ]
    weights = [weight for weight, _ in moves]
    for _ in range(steps):
        dice.choices(moves, weights)[0][1]()
        role.limits_hold()
    role.teardown()


@pytest.mark.parametrize("name", list(DEFECTS))
def test_a_planted_defect_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    DEFECTS[name](monkeypatch)
    for seed in range(400):
        try:
            wander(seed)
        except (AssertionError, KeyError, IndexError) as found:
            print(f"{name}: world {seed}: {str(found).splitlines()[0] if str(found) else type(found).__name__}")
            return
    pytest.fail(f"{name} was not found in 400 worlds")


def test_without_a_defect_no_world_fails() -> None:
    """On a failure the seed is in the trace: `wander(seed)` is that world again."""
    for seed in range(400):
        wander(seed)
