"""Every metric, declared once. Base units, no payloads; labels are names from the policy or from closed sets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from sluiceway import __version__
from sluiceway.core import ledger, worth
from sluiceway.core.call import CACHED
from sluiceway.core.outcome import Ending, Escalation, Result, Review, Status
from sluiceway.core.trail import Attempt, Routed, Step
from sluiceway.core.watchdog import Facts, Findings
from sluiceway.core.worth import WorthBoard
from sluiceway.telemetry.tally import Distribution, Labels, Tallies

_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1)
_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)


class Metrics:
    """The metrics of one process, in a registry of their own. Implements the meters of the runner and of Kafka."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        tallies = Tallies(self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        self.jobs = counter("sluiceway_jobs", "Rounds of jobs that ended, by outcome.", ("task", "outcome"))
        self.attempts = counter(
            "sluiceway_attempts",
            "Calls to models, by the gate's verdict.",
            ("task", "model", "tier", "verdict"),
            registry=self.registry,
        )
        self.escalations = counter(
            "sluiceway_escalations", "Jobs handed to the reference, by reason.", ("task", "reason")
        )
        self.retries = counter(
            "sluiceway_retries",
            "Jobs that left their worker to wait, by the seconds of their delay.",
            ("task", "role", "delay"),
        )
        self.refusals = counter("sluiceway_refusals", "Jobs refused, by reason.", ("task", "reason"))
        self.cost = counter("sluiceway_cost_usd", "US dollars spent on attempts, failed ones too.", ("task", "model"))
        self.reference_cost = counter(
            "sluiceway_reference_cost_usd", "US dollars the reference alone would have cost.", ("task",)
        )
        self.answered_cost = counter(
            "sluiceway_answered_cost_usd", "US dollars that jobs with an answer cost, all their attempts.", ("task",)
        )
        self.cost_per_success = gauge(
            "sluiceway_cost_per_success_usd",
            "US dollars for each answer that stands, over the window of the task's `worth`; +Inf with none.",
            ("task", "model"),
            registry=self.registry,
        )
        self.too_dear = gauge(
            "sluiceway_too_dear", "1 while a success of the model costs more than the next one's.", ("task", "model")
        )
        self.worth_skips = counter(
            "sluiceway_worth_skips", "Routes past a model that was too dear for a success.", ("task", "model")
        )
        self.worth_pauses = counter(
            "sluiceway_worth_pauses", "Waits before a model that was too dear for a success.", ("task", "model")
        )
        self.context_use = Distribution(
            "sluiceway_context_use_ratio",
            "Share of the model's context window that a call took, its answer included.",
            ("task", "model"),
            bounds=_SHARES,
            registry=self.registry,
        )
        self.kept_answers = counter(
            "sluiceway_kept_answers", "Attempts that a kept answer served: no call was made.", ("task", "model")
        )
        self.tokens = counter("sluiceway_tokens", "Metered tokens.", ("model", "type"))
        self.duration = Distribution(
            "sluiceway_job_duration_seconds",
            "From a job's first take to its outcome, time waiting in topics included.",
            ("task", "outcome"),
            bounds=_SECONDS,
            registry=self.registry,
        )
        self.lost_calls = counter(
            "sluiceway_lost_calls", "Calls that a process died over before their reply came.", ("task", "model")
        )
        self.reused_ids = counter(
            "sluiceway_reused_ids", "Jobs whose id came before with another input, once for each input.", ("task",)
        )
        self.taken = counter("sluiceway_taken", "Records taken from a topic.", ("consumergroup", "topic"))
        self.settled = counter("sluiceway_settled", "Records settled.", ("consumergroup", "topic"))
        self.tombstones = counter("sluiceway_tombstones", "Records without a value, which are skipped.", ("topic",))
        self.in_flight = gauge("sluiceway_jobs_in_flight", "Jobs taken and not yet settled.", ("consumergroup",))
        self.lag = gauge("sluiceway_consumer_lag", "Records not yet settled.", ("consumergroup", "topic", "partition"))
        self.last_commit = gauge(
            "sluiceway_last_commit_timestamp_seconds", "When offsets were last committed.", ("consumergroup",)
        )
        self.watermark_age = gauge(
            "sluiceway_watermark_age_seconds",
            "How long the oldest unsettled record has been held.",
            ("consumergroup",),
            registry=self.registry,
        )
        self.waiting = gauge(
            "sluiceway_jobs_waiting",
            "Jobs in flight that wait by rule or for the broker's ack.",
            ("consumergroup",),
            registry=self.registry,
        )
        self.held_work = gauge(
            "sluiceway_held_work_seconds",
            "How long no job has got on, of those in flight that do not wait by rule.",
            ("consumergroup",),
            registry=self.registry,
        )
        self.commit_age = gauge(
            "sluiceway_commit_age_seconds", "Since the last commit; 0 while none is due.", ("consumergroup",)
        )
        self.unacked_age = gauge(
            "sluiceway_unacked_age_seconds", "How long the oldest outgoing record has waited for its ack."
        )
        self.loop_lag = gauge("sluiceway_loop_lag_seconds", "How much later than asked the worker's loop last turned.")
        self.slow = gauge("sluiceway_watchdog_slow", "1 while the watchdog keeps the worker unready.")
        self.notices = counter("sluiceway_notices", "Notices of the Kafka layer, by kind.", ("event",))
        self._build = gauge("sluiceway_build_info", "Always 1; the labels tell what runs.", ("version", "policy"))

        # What every job counts; money in pico-dollars, so that its sums are exact.
        self._jobs, self._attempted, self._tokens = map(tallies.of, (self.jobs, self.attempts, self.tokens))
        self._cost, self._reference_cost, self._answered_cost = [
            tallies.of(counter, ledger.usd) for counter in (self.cost, self.reference_cost, self.answered_cost)
        ]

    def policy(self, digest: str) -> None:
        """The policy in use; an older one's series ends."""
        self._build.clear()
        self._build.labels(__version__, digest).set(1)

    def finished(self, record: Ending, *, known: int) -> None:
        """Counts a cascade's end and the attempts it made; the first `known` steps were counted by an earlier role."""
        task = record.task
        self._steps(task, record.trail.steps[known:])
        if isinstance(record, Result):
            labels: Labels = (task, str(record.status))
            if record.status is Status.REFUSED and record.reason is not None:
                self.refusals.labels(task, record.reason.value).inc()
            if record.reference_cost_picousd is not None:
                self._reference_cost[(task,)] += record.reference_cost_picousd
                self._answered_cost[(task,)] += record.cost_picousd
        elif isinstance(record, Review):
            labels = (task, "review")
        elif isinstance(record, Escalation):
            self.escalations.labels(task, record.reason.value).inc()
            return
        else:
            self.retries.labels(task, record.role.value, str(round(record.delay))).inc()
            return
        self._jobs[labels] += 1
        seconds = record.finished_at - record.trail.taken_at
        self.duration.observe(labels, seconds if seconds > 0.0 else 0.0)

    def watched(self, facts: Facts, findings: Findings, lag: float) -> None:
        """What the watchdog saw at one beat of the loop, which came `lag` seconds late."""
        held = dict(findings.held)
        for role in facts.roles:
            self.waiting.labels(role.group).set(role.waiting)
            self.held_work.labels(role.group).set(held.get(role.group, 0.0))
            self.commit_age.labels(role.group).set(role.commit_age)
        self.unacked_age.set(facts.unacked_age)
        self.loop_lag.set(lag)
        self.slow.set(bool(findings.slow))

    def dead_letter(self, task: str) -> None:
        """Counts a dead letter; `task` is a name of the policy, or empty where the record names none that is known."""
        self.jobs.labels(task, "dead_letter").inc()

    def worth(self, boards: Mapping[str, WorthBoard]) -> None:
        """What each task's models cost for each success now."""
        for task, board in boards.items():
            for model, price in board.prices().items():
                self.cost_per_success.labels(task, model).set(price)
                self.too_dear.labels(task, model).set(model in board.too_dear)

    def _steps(self, task: str, steps: Iterable[Step]) -> None:
        for step in steps:
            if isinstance(step, Attempt):
                self._attempt(task, step)
            elif isinstance(step, Routed):
                for model, reason in step.left_out.items():
                    if reason.startswith(worth.PREFIX):
                        self.worth_skips.labels(task, model).inc()
            elif step.reason.startswith(worth.PREFIX) and step.model is not None:
                self.worth_pauses.labels(task, step.model).inc()

    def _attempt(self, task: str, attempt: Attempt) -> None:
        usage, tokens, model = attempt.usage, self._tokens, attempt.model
        labels = (task, model)
        self._attempted[task, model, attempt.tier, attempt.verdict] += 1
        self._cost[labels] += attempt.cost_picousd
        if attempt.endpoint == CACHED:
            self.kept_answers.labels(task, model).inc()
        if attempt.context_use is not None:
            self.context_use.observe(labels, attempt.context_use)
        if usage.input_uncached:
            tokens[model, "input"] += usage.input_uncached
        if usage.input_cache_read:
            tokens[model, "cache_read"] += usage.input_cache_read
        if written := usage.input_cache_write_5m + usage.input_cache_write_1h:
            tokens[model, "cache_write"] += written
        if output := usage.output_text + usage.output_reasoning:
            tokens[model, "output"] += output

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
