"""What makes a well-formed policy unusable: names that lead nowhere, gates a model can't feed, data nobody may see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

import jinja2
import jsonschema_rs

from sluiceway.core import prompt
from sluiceway.core.answer import validator
from sluiceway.core.catalog import CLEARANCE_NAMES, Api, JsonMode, Model, Price
from sluiceway.core.document import Document, Path
from sluiceway.core.errors import Fault, InputError
from sluiceway.core.task import LOGPROB_SCORES, Gate, Kind, Rung, ScoreKind, Task


def find(models: Mapping[str, Model], tasks: Mapping[str, Task], doc: Document) -> Iterator[Fault]:
    """Every fault of the resolved policy, each with its line and mend."""
    for name, model in models.items():
        yield from _room(model, doc, ("models", name))
    for name, task in tasks.items():
        path: Path = ("tasks", name)
        yield from _answer_type(task, doc, path)
        yield from _prompt(task, doc, path)
        yield from _ladder(task, models, doc, path)
        yield from _rules(task, doc, path)
        yield from _packing(task, tasks, doc, (*path, "packing"))
    yield from _topics(tasks, doc)


def warn(models: Mapping[str, Model], tasks: Mapping[str, Task]) -> Iterator[str]:
    """What works but is probably not meant."""
    for name, task in tasks.items():
        prices = [_output_price(models[rung.model]) for rung in task.ladder]
        if prices != sorted(prices):
            yield f"tasks.{name}.ladder: a later model is cheaper than an earlier one"
        for rung in task.ladder:
            if models[rung.model].clearance < task.clearance:
                yield f"tasks.{name}.ladder: {rung.model} is never used: its clearance is below the task's"
            gate = task.gate_of(rung)
            if gate is not None and gate.score is ScoreKind.VOTES and models[rung.model].params.temperature == 0:
                yield f"tasks.{name}: draws of {rung.model} at temperature 0 never differ, so votes say nothing"
        gates = [task.gate_of(rung) for rung in task.ladder]
        if any(gate is not None and gate.score is ScoreKind.NONE for gate in gates):
            yield f"tasks.{name}: a gate with score none accepts every schema-valid answer"
        if task.packing is not None:
            yield f"tasks.{name}.packing: experimental: an answer can depend on the jobs it is packed with"
            if all(models[rung.model].api in (Api.LOCAL, Api.RECORDED) for rung in task.ladder):
                yield f"tasks.{name}.packing: no model of the ladder is called over HTTP, so nothing is packed"


def unknown_model(doc: Document, path: Path, name: str, models: Iterable[str]) -> Fault:
    near = difflib.get_close_matches(name, list(models), 1, 0.5)
    mend = f"did you mean {near[0]}?" if near else f"use one of {', '.join(models)}, or add it under models:"
    return doc.fault(path, f"there is no model {name!r}", mend)


def _output_price(model: Model) -> float:
    return float(model.price.output_mtok) if isinstance(model.price, Price) else 0.0


def _room(model: Model, doc: Document, path: Path) -> Iterator[Fault]:
    if model.params.max_tokens > model.context_window // 2:
        problem = f"the answer may take {model.params.max_tokens} of the context window's {model.context_window} tokens"
        yield doc.fault((*path, "params", "max_tokens"), problem, "leave at least half to the job: lower max_tokens")


def _answer_type(task: Task, doc: Document, path: Path) -> Iterator[Fault]:
    given = [name for name in ("labels", "tags", "output", "text") if getattr(task, name) is not None]
    if len(given) != 1:
        problem = f"{' and '.join(given)} are given together" if given else "nothing says what an answer is"
        yield doc.fault(
            (*path, given[-1]) if given else path, problem, "give exactly one of labels, tags, output, text"
        )
        return
    for name in ("labels", "tags"):
        words = getattr(task, name) or ()
        if len(set(words)) != len(words):
            yield doc.fault((*path, name), "a name stands there twice", "keep each once")
    if task.kind is Kind.EXTRACTION:
        yield from _schema(task, doc, (*path, "output"))
    if task.out_of_scope is not None and task.out_of_scope not in (*(task.labels or ()), *(task.tags or ())):
        yield doc.fault(
            (*path, "out_of_scope"),
            f"{task.out_of_scope!r} is not among the labels",
            "add it to the labels, or correct it",
        )
    known = task.schema_.get("properties", {})
    for name in task.agree_on:
        if known and name not in known:
            yield doc.fault((*path, "agree_on"), f"the answer has no field {name!r}", f"use one of {', '.join(known)}")


def _schema(task: Task, doc: Document, path: Path) -> Iterator[Fault]:
    schema = task.schema_
    if schema.get("type") != "object" or not schema.get("properties"):
        yield doc.fault(path, "the schema is not an object with properties", "write type: object and properties:")
        return
    if "$ref" in str(schema) and any("://" in ref or not ref.startswith("#") for ref in _references(schema)):
        yield doc.fault(
            path, "it refers to a schema elsewhere", "write the whole schema here ($ref: '#/$defs/...' is allowed)"
        )
        return
    try:
        jsonschema_rs.meta.validate(schema)
        validator(schema)
    except (jsonschema_rs.ValidationError, ValueError) as error:
        yield doc.fault(path, f"not a JSON Schema: {str(error).splitlines()[0]}", "correct it (draft 2020-12)")


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def _prompt(task: Task, doc: Document, path: Path) -> Iterator[Fault]:
    try:
        prompt.probe(task)
    except jinja2.TemplateSyntaxError as error:
        yield doc.fault(
            (*path, "prompt"), f"line {error.lineno} of the template: {error.message}", "correct the Jinja2 syntax"
        )
    except jinja2.TemplateError as error:
        known = ", ".join(prompt.VARIABLES)
        yield doc.fault((*path, "prompt"), error.message or "it can't be rendered", f"use only {known}")
    except InputError as error:
        yield doc.fault((*path, "prompt"), error.detail, "correct what the template computes")


def _ladder(task: Task, models: Mapping[str, Model], doc: Document, path: Path) -> Iterator[Fault]:
    missing = False
    for number, rung in enumerate(task.ladder):
        if rung.model not in models:
            missing = True
            yield unknown_model(doc, (*path, "ladder", number), rung.model, models)
    if missing:
        return
    names = [rung.model for rung in task.ladder]
    if len(set(names)) != len(names):
        yield doc.fault((*path, "ladder"), "a model stands there twice", "keep each once")
    if all(models[name].clearance < task.clearance for name in names):
        yield doc.fault(
            (*path, "clearance"),
            "no model of the ladder may see this data",
            "raise a model's clearance, or lower the task's",
        )
    for number, rung in enumerate(task.ladder):
        yield from _gate(task, rung, models, doc, path, number)
    for number, rule in enumerate(task.start):
        if rule.at not in names:
            yield doc.fault(
                (*path, "start", number, "at"), f"{rule.at!r} is not on the ladder", f"use one of {', '.join(names)}"
            )


def _gate(
    task: Task, rung: Rung, models: Mapping[str, Model], doc: Document, path: Path, number: int
) -> Iterator[Fault]:
    gate = task.gate_of(rung)
    model = models[rung.model]
    where = (*path, "ladder", number, "gate") if rung.gate is not None else (*path, "gate")
    if gate is None:
        if rung is not task.reference:
            yield doc.fault(
                where,
                f"nothing judges the answers of {rung.model}",
                "add gate: {score: label_logprob, threshold: 0.85}",
            )
        return
    if model.api is Api.LOCAL and task.kind is not Kind.LABEL:
        yield doc.fault(
            (*path, "ladder", number),
            f"{rung.model} is a classifier: it can only give one label",
            "use it for tasks with labels",
        )
    if gate.score is not ScoreKind.NONE and "threshold" not in gate.model_fields_set:
        mend = "add threshold: 0.85, or write score: none"
        yield doc.fault(where, "no threshold: every answer would pass", mend)
    if gate.score is ScoreKind.VOTES and task.kind is Kind.TEXT:
        yield doc.fault(where, "draws of free text are never the same", "use mean_logprob or answer_logprob")
    if gate.score in LOGPROB_SCORES and not gives_logprobs(model):
        mend = "use score votes or local, or a model that gives logprobs"
        yield doc.fault(
            where, f"{rung.model} ({model.api.value}) gives no logprobs, which score {gate.score.value} needs", mend
        )
    if (
        gate.score in LOGPROB_SCORES
        and task.kind is Kind.TEXT
        and gate.score in (ScoreKind.LABEL_LOGPROB, ScoreKind.MARGIN)
    ):
        yield doc.fault(
            where, f"free text has no label for score {gate.score.value}", "use mean_logprob or answer_logprob"
        )
    if gate.score is ScoreKind.LOCAL:
        yield from _local_gate(task, gate, model, models, doc, where)


def _local_gate(
    task: Task, gate: Gate, model: Model, models: Mapping[str, Model], doc: Document, where: Path
) -> Iterator[Fault]:
    if task.kind is not Kind.LABEL:
        yield doc.fault(where, "score local judges labels only", "use logprobs or votes")
    if gate.model is None:
        if model.api is not Api.LOCAL:
            yield doc.fault(
                where, "score local needs a local model", "add model: and the name of a model with api: local"
            )
    elif gate.model not in models:
        yield unknown_model(doc, (*where, "model"), gate.model, models)
    else:
        yield from _judge(task, models[gate.model], doc, (*where, "model"))


def _judge(task: Task, judge: Model, doc: Document, where: Path) -> Iterator[Fault]:
    """A model that only scores: its calls are no attempts, so they may cost nothing."""
    if judge.api is not Api.LOCAL:
        yield doc.fault(where, f"{judge.name!r} is not a local model", "name a model with api: local")
    elif judge.clearance < task.clearance:
        problem = f"{judge.name} may not see this task's data"
        yield doc.fault(where, problem, f"raise the clearance of {judge.name} to {CLEARANCE_NAMES[task.clearance]}")
    elif isinstance(judge.price, Price) and any(judge.price.rates[:-1]):
        yield doc.fault(where, f"{judge.name} has a price, and scores are not billed", "write price: free for it")


def gives_logprobs(model: Model) -> bool:
    """Whether the model can feed a logprob score: the OpenAI format, unless the policy says `logprobs: false`."""
    return model.api is Api.OPENAI and model.logprobs is not False and model.json_mode is not JsonMode.TOOL


def _rules(task: Task, doc: Document, path: Path) -> Iterator[Fault]:
    if task.retries.first_wait > task.retries.longest_wait:
        yield doc.fault((*path, "retries"), "first_wait is longer than longest_wait", "swap the two")
    if task.context_share + task.examples_share > 0.9:
        yield doc.fault(
            (*path, "context_share"), "context and examples leave the job under 10% of the tokens", "lower one of them"
        )


_NAMES = frozenset({"$id", "$anchor", "$dynamicAnchor", "$dynamicRef"})


def _packing(task: Task, tasks: Mapping[str, Task], doc: Document, path: Path) -> Iterator[Fault]:
    if task.packing is None:
        return
    mend = "remove packing:"
    if task.kind is Kind.TEXT:
        yield doc.fault(path, "free text is not packed", f"{mend}, or use labels, tags or output")
    if task.kind is Kind.EXTRACTION and not _NAMES.isdisjoint(_keys(task.schema_)):
        yield doc.fault(path, "its schema has names of its own ($id, $anchor), which packing would lose", mend)
    alike = [name for name, one in tasks.items() if prompt.schema_name(one) == prompt.schema_name(task)]
    if len(alike) > 1:
        yield doc.fault(path, f"{' and '.join(alike)} are one name on the wire", f"rename one, or {mend}")


def _keys(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from schema
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        yield from _keys(part)


def _topics(tasks: Mapping[str, Task], doc: Document) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for name, task in tasks.items():
        topic = task.source.topic if task.source else None
        if topic is None:
            continue
        if topic in seen:
            yield doc.fault(
                ("tasks", name, "source"),
                f"topic {topic} is read by task {seen[topic]} already",
                "give each task its own topic",
            )
        seen[topic] = name
