"""Packing: several small jobs of one task in one call, and each one's own part of what comes back.

Pure. Jobs are packed only with jobs that differ in nothing but their text: tenant, clearance, model, prompt, schema,
draw. Each text stays in its own fence, and a second one with the job's number, whose tag no text can hold. An answer
counts only where its number stands exactly once and the task's own schema takes it. What a packed call costs is shared
to the token. Experimental: a model may answer a job otherwise beside neighbours than alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from sluiceway.core import ledger
from sluiceway.core.answer import Answer, AnswerReader
from sluiceway.core.call import Call, FinishReason, Reply, Request, Usage
from sluiceway.core.catalog import Api, Clearance, Model, Price
from sluiceway.core.parts import Part, parts
from sluiceway.core.prompt import CHAT_TOKENS, fence, schema_name
from sluiceway.core.task import Packing, Task
from sluiceway.core.tokens import Tokens

INSTRUCTION = (
    "Here several jobs are asked for at once. Each stands between <job-...> and </job-...> lines, with its number. Do "
    "all that is said above for each job by itself, as if it were the only one: nothing in one job is about another. "
    "Answer with one JSON object that has each job's number as a key, once, and that job's own answer object as its "
    'value: {"1": {...}, "2": {...}}.'
)

_PAID = (Api.OPENAI, Api.ANTHROPIC)  # what answers in-process looks at one text at a time
_ANSWER = "answer"  # the task's schema in the packed one
_LEAST_SAVED = 0.1  # of the input tokens; so that no share can be dearer than a call of its own, roundings and all
_KEPT = 64  # system prompts of one task: one a rung
_BAD_IN_A_ROW = 3
_OFF = 300.0  # seconds
_INPUT = ("input_uncached", "input_cache_read", "input_cache_write_5m", "input_cache_write_1h")
_OUTPUT = ("output_text", "output_reasoning")


def together(call: Call) -> Hashable:
    """Equal exactly for calls that may be packed together, within one policy."""
    request = call.request
    return (
        call.model.name,
        call.endpoint,
        call.tenant,
        call.clearance,
        request.schema_name,
        request.system,
        call.logprobs,
        call.draw,
    )


def shares(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """What each of several jobs pays of `usage`: whole tokens whose sum is exactly it.

    Input goes by `weights` (1 or more), the tokens each would have sent alone; output, whose thinking can't be told
    apart, evenly. Of each kind nobody pays more than his part rounded up.
    """
    upto = [0, *accumulate(weights)]
    parts: list[dict[str, int]] = [{} for _ in weights]
    for names, bounds in ((_INPUT, upto), (_OUTPUT, range(len(weights) + 1))):
        for name in names:
            amount = getattr(usage, name)
            ends = [amount * bound // bounds[-1] for bound in bounds]
            for part, first, last in zip(parts, ends, ends[1:], strict=False):
                part[name] = last - first
    return [Usage(**part) for part in parts]


def paid(usage: Usage, calls: Sequence[Call], stay: Sequence[int]) -> Sequence[Usage]:
    """What those who stay, by their places, pay of a packed call. Theirs who have left falls to them.

    But nobody pays more than a call of its own could cost: its budget has room for that. Then each pays its own
    share alone, and what is left is lost with the calls of those who left, as a call that is cut off always is.
    """
    weights = [max(1, call.request.input_tokens) for call in calls]
    price = calls[0].model.price
    fallen = ledger.exact(shares(usage, [weights[at] for at in stay]), price)
    if len(stay) == len(calls) or not isinstance(price, Price):
        return fallen
    longest = calls[0].model.params.max_tokens
    if all(
        ledger.cost(share, price) <= ledger.worst_cost(weights[at], longest, price)
        for at, share in zip(stay, fallen, strict=True)
    ):
        return fallen
    own = shares(usage, weights)
    return [own[at] for at in stay]


class Packer:
    """Packs and unpacks the calls of one task; what does not change from pack to pack is kept."""

    def __init__(self, task: Task, rules: Packing, tokens: Tokens) -> None:
        self.rules = rules
        self.patience = max(1, task.retries.tries - 1)  # packs of a job's that may fail before it goes alone
        self._reader = AnswerReader(task)
        self._tokens = tokens
        self._name = schema_name(task)[:54]
        self._instruction = len(tokens.encode(INSTRUCTION)) + 2
        # Letters and digits in turn are the tag that most tokens go to.
        self._fence = len(tokens.encode(fence("job", "0f" * 8, "", str(rules.jobs)))) + 2
        self._systems: dict[str, tuple[str, int]] = {}
        self._schemas: dict[int, tuple[Any, dict[str, Any]]] = {}
        self._models: dict[tuple[str, int], tuple[Model, Model]] = {}

    # -- which calls ---------------------------------------------------------------------------------------------------

    def takes(self, call: Call, now: float) -> bool:
        """Whether `call` may wait for others: small, not short of time, and not too sensitive."""
        rules = self.rules
        return (
            call.model.api in _PAID
            and call.request.schema is not None
            and (call.clearance < Clearance.RESTRICTED or rules.restricted)
            # Half the model's own time must be left once the wait is over.
            and call.deadline - now - rules.wait >= call.model.timeout / 2
            and self._own(call) <= rules.tokens
            and self.fits([call], call)
        )

    def fits(self, calls: Sequence[Call], one_more: Call) -> bool:
        """Whether a packed call of these and one more stays within the context window and the lowest price tier."""
        model, jobs = one_more.model, len(calls) + 1
        size = self._size([*calls, one_more])
        tiers = model.price.tiers if isinstance(model.price, Price) else ()
        # Half, as our count of tokens is not the provider's: the whole must be billed at the price of each share.
        most = min([tier.from_tokens // 2 for tier in tiers], default=size)
        return size <= most and size + jobs * model.params.max_tokens <= model.context_window

    def pays(self, calls: Sequence[Call]) -> bool:
        """Whether one call of them sends fewer tokens than each alone, by a tenth or more."""
        alone = sum([call.request.input_tokens for call in calls])
        return len(calls) > 1 and self._size(calls) <= (1 - _LEAST_SAVED) * alone

    def _size(self, calls: Sequence[Call]) -> int:
        """Input tokens of a packed call, by our own count."""
        system = self._system(calls[0].request)[1]
        return system + self._instruction + sum([self._own(call) + self._fence for call in calls])

    def _own(self, call: Call) -> int:
        """The tokens that are the job's alone: all but the system prompt."""
        return max(0, call.request.input_tokens - self._system(call.request)[1])

    def _system(self, request: Request) -> tuple[str, int]:
        """The packed calls' system prompt, and what the first part of it takes: the job's own, where caches hit it."""
        known = self._systems.get(request.system)
        if known is None:
            if len(self._systems) >= _KEPT:
                self._systems.clear()
            size = len(self._tokens.encode(request.system)) + CHAT_TOKENS
            known = self._systems[request.system] = (f"{request.system}\n\n{INSTRUCTION}", size)
        return known

    # -- there ---------------------------------------------------------------------------------------------------------

    def pack(self, calls: Sequence[Call], job_id: str) -> Call:
        """One call for all of them; each is known in it by its place, counted from 1, and by nothing of its own."""
        first, count = calls[0], len(calls)
        users = [call.request.user for call in calls]
        # Over all texts: none of them can hold it, so none can close its fence, or open one that looks like ours.
        tag = hashlib.sha256("\0".join(users).encode("utf-8", "surrogatepass")).hexdigest()[:16]
        user = "\n".join([fence("job", tag, text, str(number)) for number, text in enumerate(users, 1)])
        system, _ = self._system(first.request)
        schema = self._schema(first.request.schema, count)
        # Calls of one name are held to be alike, in what they send, how long they take and how long their answers are.
        name = f"{self._name}_packed_{count}"
        return replace(
            first,
            model=self._model(first.model, count),
            request=Request(system, user, schema, name, self._size(calls), ""),
            deadline=min([call.deadline for call in calls]),
            job_id=job_id,
        )

    def _schema(self, answer: Mapping[str, Any] | None, count: int) -> dict[str, Any]:
        known = self._schemas.get(count)
        if known is None or known[0] is not answer:
            known = self._schemas[count] = (answer, packed_schema(answer or {}, count))
        return known[1]

    def _model(self, model: Model, count: int) -> Model:
        """The model with room for `count` answers."""
        known = self._models.get((model.name, count))
        if known is None or known[0] is not model:
            params = model.params.model_copy(update={"max_tokens": count * model.params.max_tokens})
            known = self._models[model.name, count] = (model, model.model_copy(update={"params": params}))
        return known[1]

    # -- and back ------------------------------------------------------------------------------------------------------

    def unpack(self, reply: Reply, count: int) -> list[Reply | None]:
        """Each job's own reply, by its place; None where its answer is missing, double or malformed. Usage is not
        shared yet: each holds the whole.
        """
        found = parts(reply, count) if reply.finish is not FinishReason.DECLINED else {}
        return [self._good(found.get(number), reply, count) for number in range(1, count + 1)]

    def _good(self, part: Part | None, whole: Reply, count: int) -> Reply | None:
        if part is None or not isinstance(self._reader.read(part.text), Answer):
            return None
        return replace(whole, text=part.text, logprobs=part.logprobs, finish=FinishReason.STOP, packed=count)


def packed_schema(answer: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The JSON Schema of an object with one `answer` for each of the numbers 1 to `count`; `answer` stands there once.

    References within `answer` lead to where it stands now.
    """
    numbers = [str(number) for number in range(1, count + 1)]
    return {
        "type": "object",
        "properties": {number: {"$ref": f"#/$defs/{_ANSWER}"} for number in numbers},
        "required": numbers,
        "additionalProperties": False,
        "$defs": {_ANSWER: _moved(answer)},
    }


_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_VALUES = frozenset({"enum", "const", "default", "examples"})


def _moved(schema: Any) -> Any:
    """A schema whose references start at its new place."""
    if isinstance(schema, list):
        return [_moved(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith("#"):
            made[key] = f"#/$defs/{_ANSWER}{value[1:]}"
        elif key in _NAMED and isinstance(value, Mapping):
            made[key] = {name: _moved(part) for name, part in value.items()}
        else:
            made[key] = value if key in _VALUES else _moved(value)
    return made


@dataclass(slots=True)
class Standing:
    """Whether packing one task's jobs for one model is of use: after bad packs in a row it rests for a while."""

    _bad: int = 0
    _until: float = 0.0

    def rests(self, now: float) -> bool:
        return now < self._until

    def answered(self, good: int, jobs: int, now: float) -> None:
        """A packed call gave `good` answers for `jobs`: none where the endpoint refused it. Fewer than half is bad."""
        self._bad = 0 if 2 * good >= jobs else self._bad + 1
        if self._bad >= _BAD_IN_A_ROW:
            self._bad, self._until = 0, now + _OFF
