"""Defects to plant, by name: each changes one place of the code under test as a slip of the pen would.

A defect is a function's own source with one text replaced, so that it follows the code as it grows; a text that is no
longer there fails loudly, and wants a new defect of that kind. Every one must break a law in some world.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

from sluiceway.archive import flight, journal
from sluiceway.core import cascade, commits, held, ledger, offsets, queue, record, retrybudget, slots, stream
from sluiceway.kafka import committer, consumer, fetch, group, jobs, publish
from sluiceway.models import pool

from sluiceway import runner, work  # isort: skip

Slip = tuple[Any, str, str, str]
"""Owner (class or module), function, the text that stands there, and what is written instead."""


def _slipped(owner: Any, name: str, old: str, new: str) -> Any:
    """The function with `old` replaced by `new`. Raises LookupError where `old` does not stand there."""
    found = inspect.getattr_static(owner, name)
    function = found.fget if isinstance(found, property) else found
    # Where a function has two slips, the second is made in the text that the first has left.
    source = getattr(function, "planted", None) or textwrap.dedent(inspect.getsource(function))
    if old not in source:
        raise LookupError(f"{owner.__name__}.{name} holds no {old!r} any more: plant this defect anew")
    if isinstance(found, property):
        source = source.removeprefix("@property\n")
    module: ModuleType = sys.modules[function.__module__]
    made: dict[str, Any] = {}
    source = source.replace(old, new)
    code = compile(source, f"<planted in {name}>", "exec", __future__.annotations.compiler_flag)
    exec(code, module.__dict__, made)  # noqa: S102  our own source, changed in one place
    slipped = made[name]
    slipped.planted = source
    return property(slipped) if isinstance(found, property) else slipped


@contextmanager
def _planted(*slips: Slip) -> Iterator[None]:
    with ExitStack() as stack:
        for owner, name, old, new in slips:
            found, slipped = inspect.getattr_static(owner, name), _slipped(owner, name, old, new)
            stack.enter_context(mock.patch.object(owner, name, slipped))
            # The cascade's table holds functions, not their names.
            held = {key: slipped for key, step in cascade.TABLE.items() if step is found}
            stack.enter_context(mock.patch.dict(cascade.TABLE, held))
        yield


def _plant(*slips: Slip) -> Callable[[], AbstractContextManager[None]]:
    return partial(_planted, *slips)


_S, _L, _J, _P = stream.Stream, offsets.OffsetLedger, jobs.RunningJobs, publish.Publisher
_C, _Q = commits.Commits, queue.Queue

PLANTS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    # Offsets.
    "watermark_off_by_one": _plant((_L, "watermark", "self._order[0] if", "self._order[0] + 1 if")),
    "marker_never_passed": _plant((_L, "reach", "if position > self.position:", "if False:")),
    "map_read_one_too_far": _plant(
        (offsets, "_ranges", "edge + gap + length))", "edge + gap + length + 1))"),
        (offsets, "_from_bits", "watermark + end)", "watermark + end + 1)"),
    ),
    "taken_again": _plant((_L, "take", "if offset < self.position:", "if False:")),
    "map_one_too_many": _plant((_L, "finished", "ranges.append((edge, offset))", "ranges.append((edge, offset + 1))")),
    "commit_without_map": _plant(
        (_C, "_commit", "encode_finished(offset, held.ledger.finished(), self.metadata_chars)", '("", 0)')
    ),
    "map_of_another_commit": _plant((_C, "_commit", "offset = held.ledger.watermark", "offset = held.ledger.position")),
    "map_keeps_one_range": _plant((commits, "encode_finished", "ranges[:kept])", "ranges[:1])")),
    "map_forgets_what_it_was_given": _plant((_L, "finished", "if self._skip_to > 0 else []", "if False else []")),
    "map_not_read": _plant((_S, "assign", "decode_finished(start, metadata)", "()")),
    "skips_a_finished_range_only_once": _plant((_L, "take", "while 0 <= self._skip_to <= offset:", "while False:")),
    "commit_without_what_was_settled_last": _plant(
        (_C, "due", "one.changes != one.committed_changes", "one.changes > one.committed_changes + 1")
    ),
    # Epochs.
    "epoch_ignored_by_fetch": _plant((_S, "fetched", "held.epoch != epoch or ", "")),
    "fetched_under_an_old_epoch": _plant(  # found by these worlds in September's fetch loop
        (
            fetch.FetchLoop,
            "_fetch",
            "continue\n        except OutOf",
            "await asyncio.sleep(0.5)\n            continue\n        except OutOf",
        ),
        (fetch.FetchLoop, "_is_current", "self._stream.epoch(partition) == epoch", "True"),
    ),
    "epoch_never_ends": _plant((_S, "revoke", "held.gone = True", "held.gone = False")),
    "publish_after_the_epoch": _plant((_J, "_run", "if job.held.gone or self._shut:", "if False:")),
    "partitions_kept_after_a_revoke": _plant(
        (consumer.RoleConsumer, "_revoked", "self._stream.revoke(held)", "pass"),
    ),
    "started_twice_without_join": _plant((_J, "start", "if self._detached:", "if False:")),
    "error_taken_for_no_offsets": _plant(  # as aiokafka 0.14 itself does
        (
            group,
            "fetch_committed",
            '_raise(coordinator, getattr(answer, "error_code", 0), coordinator.group_id)',
            "pass",
        ),
        (group, "fetch_committed", "if missing:", "if False:"),
    ),
    "drained_for_nobody": _plant(
        (consumer.RoleConsumer, "_revoked", "begin + self.settings.revoke_budget * 0.7", "begin + 0.2")
    ),
    "order_forgotten_at_a_revoke": _plant(
        (_J, "part", "self._settings.limits.order is not Order.NONE and task is not None", "False")
    ),
    # Flow.
    "span_ignored": _plant(
        (_S, "wanted", "self.limits.span - held.ledger.span", "self.limits.span"),
        (held.Held, "pauses", "self.ledger.span >= limits.span", "False"),
    ),
    "jobs_without_limit": _plant(  # twice, as tenants that compete take no more slots than there are
        (_S, "start", "room = min(jobs - self.running + self.handed, 2 * jobs - self.running,", "room = min(10_000,"),
        (slots.Slots, "may", "if self._other_at <= self._now - _RECENT:", "if True:"),
    ),
    "dropped_when_full": _plant(
        (_S, "fetched", "or held.draining:", "or held.draining or self.queued >= self.limits.queue // 2:")
    ),
    "not_woken_after_a_pause": _plant(
        (fetch.FetchLoop, "_something", "timeout=_LOOK", "timeout=None"),
        (fetch.FetchLoop, "wake", "self._nudged = True", "return"),
    ),
    "nothing_started_after_a_settle": _plant((_J, "_sweep", "self.start(self._loop.time())", "pass")),
    "key_ignored": _plant((_Q, "push", "if self._by_key and key is not None:", "if False:")),
    "turn_given_away_before_the_ack": _plant((_S, "hand_over", "or self.limits.order is Order.PARTITION", "")),
    "line_never_moves": _plant((_Q, "settled", "self._fresh.append(line.popleft())", "line.popleft()")),
    "seek_one_too_far": _plant((consumer.RoleConsumer, "_open", "opening.offset)", "opening.offset + 1)")),
    "flood_never_holds": _plant((_S, "settle", "if held.flood.settled(dead) and", "if False and")),
    "held_partition_starts": _plant((stream, "jobs_in_turn", "if not held.reasons and", "if")),
    "hold_forgotten_by_the_next_owner": _plant(
        (consumer.RoleConsumer, "_open", "if opening.partition in held:", "if False:")
    ),
    "retry_without_its_delay": _plant((_S, "fetched", "job.due = now + min(", "job.due = now + 0.5 * min(")),
    "next_retry_not_waited_for": _plant((_J, "_wait_for_the_next", "self._loop.call_at(due, self._sweep)", "None")),
    # Publish, settle, commit.
    "settled_before_the_ack": _plant(
        (
            _P,
            "submit",
            "waiting.append(Entry(",
            "on_ack(ticket, outgoing, None)\n    on_ack = lambda *_: None\n    waiting.append(Entry(",
        )
    ),
    "publish_failure_settles": _plant((_P, "_batch_done", "if error is not None:", "if False:")),
    "publish_failure_forgotten": _plant(
        (_P, "_batch_failed", "lane.waiting.extendleft(reversed(entries))\n    name", "name")
    ),
    "unacked_forgotten_with_its_producer": _plant((_P, "_replace_producer", "if lane.sending]", "if False]")),
    "commit_failure_taken_for_done": _plant(
        (committer.Committer, "_attempt", "if outcome is Committed.DONE:", "if True:")
    ),
    "commit_never_made_again": _plant((_C, "failed", "self._under_way = False", "pass")),
    "published_twice": _plant(
        (
            _P,
            "submit",
            "waiting.append(Entry(",
            "waiting.append(Entry(outgoing, lambda *_: None, ticket, size, 0.0))\n"
            "    self._unacked += 1\n    waiting.append(Entry(",
        )
    ),
    "under_way_in_a_replaced_producer_sent_again": _plant(
        (_P, "_retire", "await close_producer(old, _RETIRE)", "pass")
    ),
    "published_and_forgotten": _plant(
        (flight.StoreFlight, "was_published", "or (bool(self._published) and", "or (False and")
    ),
    "published_and_forgotten_at_once": _plant(
        (flight.StoreFlight, "was_published", "return place in self._own or", "return")
    ),
    "memory_covered_by_an_earlier_commit": _plant(
        (flight.StoreFlight, "cover", "if job.place[2] < commit.offset", "if True"),
    ),
    "oversize_settles_unpublished": _plant((_J, "_acked", "if result is None:", "if True:")),
    # Work, runner, cascade.
    "dead_letter_not_published": _plant(
        (work.Desk, "_job", "return self._dead(record, Role.JOBS, error, about)", "return None")
    ),
    "escalation_not_published": _plant(
        (
            work.Desk,
            "_job",
            "return self._outgoing(record, await self._runner.run(job))",
            "made = await self._runner.run(job)\n"
            "        return None if isinstance(made, Escalation) else self._outgoing(record, made)",
        )
    ),
    "deadline_moves_with_each_wait": _plant(
        (
            cascade.Cascade,
            "_wait",
            "if self._now >= self._deadline:",
            "self._deadline += 60.0\n    if self._now >= self._deadline:",
        )
    ),
    "deadline_begins_anew_at_each_take": _plant(
        (
            cascade.Cascade,
            "_begin",
            "whole if self._resumed is None else self._resumed.trail.remaining",
            "whole",
        )
    ),
    "wrong_round": _plant(
        (record.Recorder, "answered", "    job.round,\n", "    0,\n"),
        (record.Recorder, "_head", "job.id, job.round, job.task", "job.id, 0, job.task"),
    ),
    "wrong_reason_of_an_escalation": _plant(
        (cascade.Cascade, "_judged", "verdict.reason or EscalationReason.MALFORMED", "EscalationReason.MALFORMED")
    ),
    "wrong_reason_of_a_dead_letter": _plant(
        (work.Desk, "_dead", "DeadLetterReason(error.reason) if", "DeadLetterReason.INVALID if")
    ),
    "cost_of_a_bad_reply_lost": _plant(
        (
            record.Recorder,
            "_attempt",
            "self.spent += cost",
            "self.spent += cost if verdict is VerdictKind.ACCEPT else 0",
        )
    ),
    "spending_not_counted": _plant((runner.Runner, "_paid", "self.spent += actual", "pass")),
    "timeout_ignored": _plant((pool.Pool, "_timed", "within(left, ", "within(left + 1e9, ")),
    "retry_budget_ignored": _plant(
        (retrybudget.RetryBudget, "wait", "self._balance = min(", "return 0.0\n    self._balance = min(")
    ),
    "reply_paid_twice": _plant((runner.Runner, "_perform", "entry.reply is not None:", "False:")),
    "call_not_on_record": _plant((journal.Entry, "started", "store.turn.called.append(self)", "pass")),
    "cache_reads_unpriced": _plant((ledger, "cost", "usage.input_cache_read", "0 * usage.input_cache_read")),
}
