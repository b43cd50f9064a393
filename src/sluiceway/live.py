"""A policy against its real models: one call to each endpoint, and whether every gate can be fed by what came back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sluiceway.core.catalog import Api
from sluiceway.core.policy import Policy
from sluiceway.core.task import LOGPROB_SCORES
from sluiceway.models import tokens
from sluiceway.models.live import LiveReport
from sluiceway.models.pool import Pool
from sluiceway.ports import Clock


async def probe(policy: Policy, clock: Clock) -> tuple[list[LiveReport], list[str]]:
    """The reports, and each reason why `policy` can't run as it is. Costs one short call an endpoint.

    Raises InputError where a key or a file is missing.
    """
    pool = Pool.open(policy.models, clock, tokens.default())
    try:
        reports = [report for name in policy.models for report in await pool.live_check(name)]
    finally:
        await pool.close()
    return reports, [*_failed(policy, reports), *_unfed(policy, reports)]


def _failed(policy: Policy, reports: Iterable[LiveReport]) -> Iterator[str]:
    for report in reports:
        if report.key is False:
            yield f"models.{report.model}: the key is refused by {report.endpoint}. Mend: another key for this model"
        elif report.failure is not None:
            yield f"models.{report.model}: {report.endpoint} fails ({report.failure}). Mend: see base_url and model"
        elif not report.ok:
            mode = policy.models[report.model].json_mode.value
            yield f"models.{report.model}: gives no JSON with json_mode {mode}. Mend: json_mode: on, tool or off"


def _unfed(policy: Policy, reports: Iterable[LiveReport]) -> Iterator[str]:
    """Gates that score by logprobs, on models that answered and gave none."""
    without = {report.model for report in reports if report.failure is None and not report.logprobs}
    for task in policy.tasks.values():
        for rung in task.ladder:
            gate = task.gate_of(rung)
            # A recorded model is never called, and never gives any: reading the policy has refused that already.
            if gate is None or gate.score not in LOGPROB_SCORES or policy.models[rung.model].api is not Api.OPENAI:
                continue
            if rung.model in without:
                yield (
                    f"tasks.{task.name}: gate {gate.score.value} needs logprobs, and {rung.model} gives none."
                    " Mend: score votes or local, or another model"
                )
