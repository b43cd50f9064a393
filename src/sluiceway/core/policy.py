"""The policy: the one file a user writes, validated whole, resolved, and named by a digest that every outcome carries.

`load` finds every fault before it gives up, so that a user mends a file once. What lies outside the file (prompt and
schema files, providers' addresses and prices) enters through two functions, so that this stays pure.
"""

from __future__ import annotations

import difflib
import hashlib
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, Field, ValidationError

from sluiceway.core import document, faults
from sluiceway.core.catalog import Api, Endpoint, Frozen, Model, Price
from sluiceway.core.document import Document, Path
from sluiceway.core.errors import Fault, InputError, PolicyError
from sluiceway.core.task import Example, Task


class Offer(NamedTuple):
    """What is known of a provider's model outside the policy; None where it is unknown."""

    api: Api | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    price: Price | None = None
    origin: str = ""  # where the price was found
    context_window: int | None = None
    similar: tuple[str, ...] = ()  # model names that look alike, for the mend


Offers = Callable[[str, str], Offer]
Read = Callable[[str], str]
"""The text of a file named in the policy, relative to it. Raises InputError when it can't be read."""


class PolicySpec(Frozen):
    models: dict[str, Model] = Field(min_length=1, description="{cheap: {provider: openai, model: ...}}")
    tasks: dict[str, Task] = Field(min_length=1, description="{ticket-triage: {ladder: [...], ...}}")
    secret_env: str = Field(
        default="SLUICEWAY_SECRET", description="the environment variable that holds the coins' secret"
    )


@dataclass(frozen=True, slots=True)
class Policy:
    """A resolved policy. `prices` says where each model's price is from; `warnings` are for `check` to print."""

    models: Mapping[str, Model]
    tasks: Mapping[str, Task]
    secret_env: str
    digest: str
    prices: Mapping[str, str]
    warnings: tuple[str, ...]

    @property
    def tosses(self) -> bool:
        """Whether some rule needs a coin, and so the secret."""
        return any(task.review.sample for task in self.tasks.values())


def load(text: str, *, file: str, read: Read, offers: Offers) -> Policy:
    """The policy that `text` holds. Raises PolicyError with every fault found: file, line, field, and the mend."""
    doc = document.parse(text, file)
    try:
        spec = PolicySpec.model_validate(doc.data)
    except ValidationError as error:
        raise PolicyError(_in_file_order([*_explain(error, doc), *_loose_ends(doc)])) from None
    found: list[Fault] = []
    warnings: list[str] = []
    prices: dict[str, str] = {}
    models = {name: _model(name, model, doc, offers, found, warnings, prices) for name, model in spec.models.items()}
    tasks = {name: _task(name, task, doc, read, found) for name, task in spec.tasks.items()}
    found.extend(faults.find(models, tasks, doc))
    if found:
        raise PolicyError(_in_file_order(found))
    warnings.extend(faults.warn(models, tasks))
    return Policy(models, tasks, spec.secret_env, _digest(models, tasks), prices, tuple(warnings))


def _in_file_order(found: list[Fault]) -> list[Fault]:
    return sorted(dict.fromkeys(found), key=lambda fault: fault.line)


def _digest(models: Mapping[str, Model], tasks: Mapping[str, Task]) -> str:
    """32 hex digits over all that decides: prompts, schemas, prices, gates. Where a key lies is left out."""
    hidden: Any = {
        "api_key_env": True,
        "api_key_file": True,
        "extra_headers": True,
        "endpoints": {"__all__": {"api_key_env", "api_key_file"}},
    }
    tree = {
        "models": {name: model.model_dump(mode="json", exclude=hidden) for name, model in models.items()},
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
    }
    return hashlib.sha256(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _model(
    name: str,
    model: Model,
    doc: Document,
    offers: Offers,
    found: list[Fault],
    warnings: list[str],
    prices: dict[str, str],
) -> Model:
    offer = offers(model.provider, model.model)
    path: Path = ("models", name)
    set_here = model.model_fields_set
    api = model.api if "api" in set_here else offer.api or Api.OPENAI
    update: dict[str, Any] = {"name": name, "api": api, "tier": model.tier or name}
    if api in (Api.OPENAI, Api.ANTHROPIC):
        update["endpoints"] = _endpoints(model, offer, doc, path, found)
        if "params" not in set_here:
            found.append(
                doc.fault(
                    (*path, "params"),
                    "max_tokens is missing",
                    "add params: {max_tokens: 200}, the longest answer you pay for",
                )
            )
        if not model.model:
            found.append(
                doc.fault((*path, "model"), "the model's name is missing", "add model: and its name at the provider")
            )
    elif not model.file:
        found.append(doc.fault((*path, "file"), f"an {api.value} model needs a file", "add file: and its path"))
    if "context_window" not in set_here and offer.context_window:
        update["context_window"] = offer.context_window
    update["price"], prices[name] = _price(name, model, api, offer, doc, path, found, warnings)
    return model.model_copy(update=update)


def _endpoints(model: Model, offer: Offer, doc: Document, path: Path, found: list[Fault]) -> tuple[Endpoint, ...]:
    url = model.base_url or offer.base_url
    if model.endpoints and model.base_url:
        found.append(doc.fault((*path, "base_url"), "base_url and endpoints are both given", "keep one of the two"))
    endpoints = model.endpoints
    if not endpoints:
        if url is None:
            known = f"no address is known for provider {model.provider!r}"
            found.append(doc.fault((*path, "base_url"), known, "add base_url: https://..., or use a known provider"))
            return ()
        endpoints = (Endpoint(base_url=url),)
    inherited = {"api_key_env": model.api_key_env, "api_key_file": model.api_key_file}
    if not any(inherited.values()):
        inherited["api_key_env"] = offer.api_key_env
    for endpoint in endpoints:
        if not endpoint.base_url.startswith(("https://", "http://")):
            found.append(doc.fault((*path, "base_url"), f"{endpoint.base_url!r} is not a URL", "write https://host/v1"))
    return tuple(
        endpoint if endpoint.api_key_env or endpoint.api_key_file else endpoint.model_copy(update=inherited)
        for endpoint in endpoints
    )


def _price(
    name: str, model: Model, api: Api, offer: Offer, doc: Document, path: Path, found: list[Fault], warnings: list[str]
) -> tuple[Price, str]:
    if isinstance(model.price, Price):
        if offer.price is not None and _differs(model.price, offer.price):
            warnings.append(f"models.{name}: the price written here differs from {offer.origin}")
        return model.price, "this policy"
    if model.price == "free":
        return Price(), "free, by this policy"
    if offer.price is not None:
        return offer.price, offer.origin
    if api is Api.LOCAL:
        return Price(), "free (runs in the worker)"
    known = f"; known there: {', '.join(offer.similar)}" if offer.similar else ""
    found.append(
        doc.fault(
            (*path, "price"),
            f"no price is known for {model.provider or 'no provider'}/{model.model or name}",
            f"add price: {{input_mtok: .., output_mtok: ..}} in USD a million tokens, or price: free{known}",
        )
    )
    return Price(), "unknown"


def _differs(written: Price, listed: Price) -> bool:
    names = ("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok")
    return any(getattr(written, key) != getattr(listed, key) for key in names if key in written.model_fields_set)


def _task(name: str, task: Task, doc: Document, read: Read, found: list[Fault]) -> Task:
    """The task with the files it names read in."""
    path: Path = ("tasks", name)
    update: dict[str, Any] = {"name": name}

    def content(key: str, file: str) -> str:
        try:
            return read(file)
        except InputError as error:
            found.append(
                doc.fault(
                    (*path, key), error.detail, "correct the path (it is relative to the policy) or create the file"
                )
            )
            return ""

    if "\n" not in task.prompt and task.prompt.endswith((".j2", ".jinja", ".txt", ".md")):
        update["prompt"] = content("prompt", task.prompt) or "missing"
    if isinstance(task.output, str):
        schema = content("output", task.output)
        try:
            update["output"] = orjson.loads(schema) if schema else {}
        except orjson.JSONDecodeError as error:
            update["output"] = {}
            found.append(
                doc.fault((*path, "output"), f"{task.output} is not JSON: {error}", "write a JSON Schema in it")
            )
    if task.examples is not None:
        update["shown"] = _examples(content("examples", task.examples), (*path, "examples"), doc, found)
    return task.model_copy(update=update)


def _examples(text: str, path: Path, doc: Document, found: list[Fault]) -> tuple[Example, ...]:
    examples = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                examples.append(Example.model_validate_json(line))
            except ValidationError:
                found.append(
                    doc.fault(
                        path,
                        f"line {number} of the examples is not {{id, input, answer}}",
                        "write one JSON object a line",
                    )
                )
    return tuple(examples)


def _loose_ends(doc: Document) -> list[Fault]:
    """Names that lead nowhere, found even while the file does not validate, so that one run shows all faults."""
    models = doc.data.get("models") if isinstance(doc.data, dict) else None
    tasks = doc.data.get("tasks") if isinstance(doc.data, dict) else None
    found: list[Fault] = []
    if isinstance(models, dict) and isinstance(tasks, dict):
        for name, task in tasks.items():
            ladder = task.get("ladder") if isinstance(task, dict) else None
            for number, entry in enumerate(ladder if isinstance(ladder, list) else []):
                rung = entry.get("model") if isinstance(entry, dict) else entry
                if isinstance(rung, str) and rung not in models:
                    found.append(faults.unknown_model(doc, ("tasks", name, "ladder", number), rung, models))
    return found


def _explain(error: ValidationError, doc: Document) -> list[Fault]:
    found = []
    for fault in error.errors(include_url=False):
        location = [part for part in fault["loc"] if part != "[key]"]
        owner, field = _owner(location)
        where = tuple(location)
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(location[-1]), list(owner.model_fields) if owner else [], 1, 0.6)
            mend = (
                f"did you mean {near[0]}?"
                if near
                else f"remove it; known here: {', '.join(sorted(owner.model_fields)) if owner else ''}"
            )
            found.append(doc.fault(where, "unknown key", mend))
            continue
        hint = field.description if field is not None and field.description else None
        if fault["type"] == "missing":
            found.append(doc.fault(where, "it is missing", f"add {location[-1]}: {hint or '...'}"))
        else:
            problem = fault["msg"].removeprefix("Value error, ")
            found.append(doc.fault(where, problem, f"write {hint}" if hint else "correct the value"))
    return found


def _owner(location: Sequence[str | int]) -> tuple[type[BaseModel] | None, Any]:
    """The model class that holds the last name of `location`, and that name's field."""
    owner: type[BaseModel] | None = PolicySpec
    field: Any = None
    holder: type[BaseModel] | None = PolicySpec
    for part in location:
        if owner is not None and isinstance(part, str) and part in owner.model_fields:
            holder, field = owner, owner.model_fields[part]
            owner = _inner(field.annotation)
        elif owner is not None and part is location[-1]:
            holder = owner
    return holder, field


def _inner(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in typing.get_args(annotation):
        inner = _inner(argument)
        if inner is not None:
            return inner
    return None
