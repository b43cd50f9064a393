"""A task: the named kind of work, as the user writes it in the policy and as the core uses it once it is resolved."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator

from sluiceway.core import rule
from sluiceway.core.catalog import Clearance, ClearanceName, Frozen, Level, LevelName
from sluiceway.core.errors import InputError
from sluiceway.core.quantity import Seconds, Share, Size
from sluiceway.core.worth import Worth


def _rule(text: str) -> str:
    try:
        rule.parse(text)
    except InputError as error:
        raise ValueError(error.detail) from None
    return text


RuleText = Annotated[str, AfterValidator(_rule)]


class Kind(StrEnum):
    LABEL = "label"
    TAGS = "tags"
    EXTRACTION = "extraction"
    TEXT = "text"


class ScoreKind(StrEnum):
    """What a gate measures. The three after `margin` are also logprobs: of all answer tokens."""

    LABEL_LOGPROB = "label_logprob"  # probability of the tokens that spell the label (the weakest one of several)
    MARGIN = "margin"  # its lead over the best alternative, 0..1
    MEAN_LOGPROB = "mean_logprob"  # geometric mean of the answer's tokens
    ANSWER_LOGPROB = "answer_logprob"  # probability of the whole constrained answer
    VOTES = "votes"  # share of several draws that agree
    LOCAL = "local"  # what a local classifier gives the answer
    NONE = "none"  # accept every schema-valid answer


LOGPROB_SCORES = frozenset(
    {ScoreKind.LABEL_LOGPROB, ScoreKind.MARGIN, ScoreKind.MEAN_LOGPROB, ScoreKind.ANSWER_LOGPROB}
)


class Gate(Frozen):
    score: Annotated[
        ScoreKind, Field(description="one of label_logprob, margin, mean_logprob, answer_logprob, votes, local, none")
    ]
    threshold: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1: the score an answer needs")] = 0.0
    on_error: Annotated[
        Literal["escalate", "accept", "review"],
        Field(description="escalate, accept or review: what to do when the score can't be computed"),
    ] = "escalate"
    model: Annotated[
        str | None, Field(description="for score local: the `local` model whose probability is the score")
    ] = None
    votes: Annotated[int, Field(ge=2, le=15, description="for score votes: how many draws, 2 to 15")] = 3


class Rung(Frozen):
    """One model of a ladder with what holds for it alone."""

    model: Annotated[str, Field(description="the name of a model under `models:`")]
    gate: Gate | None = None
    input_tokens: Annotated[int, Field(ge=64, description="tokens its request may hold, 64 or more")] | None = None


class Start(Frozen):
    when: Annotated[RuleText, Field(description="a rule such as 'stakes >= high or tokens > 6000'")]
    at: Annotated[str, Field(description="a model of this task's ladder")]


class Refuse(Frozen):
    when: Annotated[RuleText, Field(description="a rule such as 'tokens > 20000'")]
    why: Annotated[str, Field(description="a short text for the result's detail")] = ""


class ReviewRules(Frozen):
    always: Annotated[tuple[RuleText, ...], Field(description="rules such as [stakes>=high]")] = ()
    sample: Annotated[Share, Field(description="a share such as 0.5%")] = 0.0


class Bar(Frozen):
    agreement: Annotated[float, Field(gt=0, lt=1, description="a share such as 0.98")]
    confidence: Annotated[float, Field(gt=0, lt=1, description="a probability such as 0.95")] = 0.95


class Budget(Frozen):
    usd_per_job: Annotated[float, Field(gt=0, description="US dollars a job may cost at most")] | None = None
    usd_per_day: Annotated[float, Field(gt=0, description="US dollars this task may cost a day")] | None = None
    timezone: Annotated[str, Field(description="an IANA name such as Europe/Berlin")] = "UTC"
    on_exceeded: Annotated[Literal["refuse", "review"], Field(description="refuse or review")] = "refuse"

    @field_validator("timezone")
    @classmethod
    def _zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):
            raise ValueError("not a time zone; write UTC or an IANA name such as Europe/Berlin") from None
        return value


class SourceSpec(Frozen):
    """A foreign topic and where a job's fields stand in its records (JSON Pointer)."""

    topic: Annotated[str, Field(min_length=1, description="the foreign topic's name")]
    input: Annotated[
        dict[str, str], Field(min_length=1, description="{text: /body}: JSON Pointers of the input's fields")
    ]
    id: Annotated[str | None, Field(description="a JSON Pointer such as /ticket_id")] = None
    tenant: str | None = None
    stakes: str | None = None
    priority: str | None = None
    clearance: str | None = None

    @field_validator("id", "tenant", "stakes", "priority", "clearance")
    @classmethod
    def _pointer(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("/"):
            raise ValueError("not a JSON Pointer; it starts with '/', such as /ticket/id")
        return value

    @field_validator("input")
    @classmethod
    def _pointers(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value.values():
            cls._pointer(path)
        return value


class Example(Frozen):
    """A worked example that a prompt shows: data in its own fence."""

    id: str
    input: str
    answer: Any


class Retries(Frozen):
    tries: Annotated[int, Field(ge=1, le=10, description="calls to one endpoint before the next is tried, 1 to 10")] = 3
    first_wait: Annotated[Seconds, Field(description="a duration such as 500ms")] = 0.5
    longest_wait: Annotated[Seconds, Field(description="a duration such as 20s")] = 20.0


class Packing(Frozen):
    """Experimental: several small jobs of the task in one call. An answer can then depend on its neighbours."""

    jobs: Annotated[int, Field(ge=2, le=50, description="jobs a call holds at most, 2 to 50")] = 10
    wait: Annotated[
        Seconds, Field(le=10, description="a duration such as 50ms, 10s at most: how long a job waits for others")
    ] = 0.05
    tokens: Annotated[int, Field(ge=16, description="a number: a job whose own part has more tokens goes alone")] = 1000
    restricted: Annotated[bool, Field(description="true: restricted jobs are packed as well")] = False


class Task(Frozen):
    """What a task demands. Exactly one of labels, tags, output and text says what its answer is."""

    name: str = ""
    ladder: Annotated[
        tuple[Rung, ...], Field(min_length=1, description="models, cheapest first; the last is the reference")
    ]
    prompt: Annotated[str, Field(min_length=1, description="the instruction, or a file (.j2, .txt, .md)")]
    labels: (
        Annotated[
            tuple[str, ...], Field(min_length=2, description="[billing, login, other]: one of these is the answer")
        ]
        | None
    ) = None
    tags: (
        Annotated[tuple[str, ...], Field(min_length=2, description="[trade, oil]: a set of these is the answer")] | None
    ) = None
    output: Annotated[dict[str, Any] | str, Field(description="a JSON Schema, or a file that holds one")] | None = None
    text: Annotated[int, Field(ge=1, description="free text of at most this many characters")] | None = None
    out_of_scope: Annotated[str | None, Field(description="the label that means: not for this task")] = None
    agree_on: Annotated[
        tuple[str, ...], Field(description="[category]: the fields that make two answers the same")
    ] = ()
    bar: Bar | None = None
    gate: Gate | None = None
    start: tuple[Start, ...] = ()
    refuse: tuple[Refuse, ...] = ()
    review: ReviewRules = ReviewRules()
    on_failure: Annotated[Literal["escalate", "wait", "review"], Field(description="escalate, wait or review")] = (
        "escalate"
    )
    failed_share: Annotated[Share, Field(description="a share of a minute's jobs such as 10%")] = 0.10
    retries: Retries = Retries()
    packing: Packing | None = None
    clearance: Annotated[ClearanceName, Field(description="public, internal, confidential or restricted")] = (
        Clearance.INTERNAL
    )
    stakes: Annotated[LevelName, Field(description="low, normal, high or critical")] = Level.NORMAL
    priority: Annotated[LevelName, Field(description="low, normal, high or critical")] = Level.NORMAL
    risk: Annotated[LevelName, Field(description="low, normal, high or critical")] = Level.NORMAL
    deadline: Annotated[Seconds, Field(description="a duration such as 60s, from the first take")] = 120.0
    budget: Budget = Budget()
    worth: Worth = Worth()
    max_bytes: Annotated[Size, Field(description="a size such as 200kB: a larger record becomes a dead letter")] = (
        900_000
    )
    trim: Annotated[
        Literal["head", "tail", "middle", "none"], Field(description="head, tail, middle or none: which part is cut")
    ] = "tail"
    context_share: Annotated[Share, Field(description="share of the tokens for context passages")] = 0.3
    examples: Annotated[str | None, Field(description="a JSONL file of {id, input, answer}")] = None
    examples_share: Annotated[Share, Field(description="share of the tokens for examples")] = 0.2
    shown: tuple[Example, ...] = ()  # the examples' content, once resolved
    topic: Annotated[str | None, Field(description="a jobs topic of this task's own")] = None
    results: Annotated[str | None, Field(description="a results topic of this task's own")] = None
    source: SourceSpec | None = None

    @field_validator("ladder", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        """A ladder entry may be a bare model name."""
        if isinstance(value, list | tuple):
            return tuple({"model": entry} if isinstance(entry, str) else entry for entry in value)
        return value

    @field_validator("review", mode="before")
    @classmethod
    def _always(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(value.get("always"), str):
            return {**value, "always": [value["always"]]}
        return value

    @property
    def kind(self) -> Kind:
        if self.labels is not None:
            return Kind.LABEL
        if self.tags is not None:
            return Kind.TAGS
        return Kind.TEXT if self.text is not None else Kind.EXTRACTION

    @property
    def schema_(self) -> dict[str, Any]:
        """The JSON Schema of the answer, made from labels, tags or text where `output` is not written."""
        if isinstance(self.output, dict):
            return self.output
        if self.labels is not None:
            return _object("label", {"type": "string", "enum": list(self.labels)})
        if self.tags is not None:
            return _object("tags", {"type": "array", "items": {"type": "string", "enum": list(self.tags)}})
        return _object("text", {"type": "string", "minLength": 1, "maxLength": self.text})

    @property
    def compared(self) -> tuple[str, ...]:
        """The fields that make two answers the same; all of them where `agree_on` is silent."""
        return self.agree_on or tuple(self.schema_.get("properties", {}))

    @property
    def reference(self) -> Rung:
        return self.ladder[-1]

    def gate_of(self, rung: Rung) -> Gate | None:
        """The gate an answer of `rung` must pass. The reference has one only where its own entry says so."""
        if rung.gate is not None:
            return rung.gate
        return None if rung is self.reference or rung.model == self.reference.model else self.gate


def _object(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}
