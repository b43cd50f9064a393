"""The policy: the one file a user writes, validated whole, resolved, and named by a digest that every outcome carries.

`load` finds every fault before it gives up, so that a user mends a file once.
"""

from __future__ import annotations

import difflib
import hashlib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, Field, ValidationError

from sluiceway.core import document, faults
from sluiceway.core.catalog import Frozen, Model
from sluiceway.core.document import Document
from sluiceway.core.errors import Fault, PolicyError
from sluiceway.core.resolve import Locate as Locate
from sluiceway.core.resolve import Offer as Offer
from sluiceway.core.resolve import Offers as Offers
from sluiceway.core.resolve import Read as Read
from sluiceway.core.resolve import Resolver
from sluiceway.core.task import Task


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


def load(text: str, *, file: str, read: Read, offers: Offers, locate: Locate | None = None) -> Policy:
    """The policy that `text` holds. Raises PolicyError with every fault found: file, line, field, and the mend."""
    doc = document.parse(text, file)
    try:
        spec = PolicySpec.model_validate(doc.data)
    except ValidationError as error:
        raise PolicyError(_in_file_order([*_explain(error, doc), *_loose_ends(doc)])) from None
    resolver = Resolver(doc, read, offers, locate)
    models = {name: resolver.model(name, model) for name, model in spec.models.items()}
    tasks = {name: resolver.task(name, task) for name, task in spec.tasks.items()}
    found = [*resolver.found, *faults.find(models, tasks, doc)]
    if found:
        raise PolicyError(_in_file_order(found))
    warnings = (*resolver.warnings, *faults.warn(models, tasks))
    return Policy(models, tasks, spec.secret_env, _digest(models, tasks), resolver.prices, warnings)


def _in_file_order(found: list[Fault]) -> list[Fault]:
    return sorted(dict.fromkeys(found), key=lambda fault: fault.line)


def _digest(models: Mapping[str, Model], tasks: Mapping[str, Task]) -> str:
    """32 hex digits over all that decides: prompts, schemas, prices, gates. Where a key or a file lies is left out."""
    hidden: Any = {
        "api_key_env": True,
        "api_key_file": True,
        "extra_headers": True,
        "file": True,
        "endpoints": {"__all__": {"api_key_env", "api_key_file"}},
    }
    tree = {
        "models": {name: model.model_dump(mode="json", exclude=hidden) for name, model in models.items()},
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
    }
    return hashlib.sha256(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


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
