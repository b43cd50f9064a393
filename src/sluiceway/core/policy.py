"""The policy: the one file a user writes, validated whole, resolved, and named by a digest that every outcome carries.

`load` finds every fault before it gives up, so that a user mends a file once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from pydantic import Field, ValidationError

from sluiceway.core import document, faults
from sluiceway.core.catalog import Frozen, Model
from sluiceway.core.errors import Fault, PolicyError
from sluiceway.core.explain import explain, misfits
from sluiceway.core.resolve import Locate as Locate
from sluiceway.core.resolve import Offer as Offer
from sluiceway.core.resolve import Offers as Offers
from sluiceway.core.resolve import Read as Read
from sluiceway.core.resolve import Resolver
from sluiceway.core.salvage import fresh, salvage
from sluiceway.core.sharing import Sharing
from sluiceway.core.task import Task

Name = Annotated[str, Field(min_length=1, max_length=128)]


class PolicySpec(Frozen):
    models: dict[Name, Model] = Field(min_length=1, description="{cheap: {provider: openai, model: ...}}")
    tasks: dict[Name, Task] = Field(min_length=1, description="{ticket-triage: {ladder: [...], ...}}")
    sharing: Sharing = Sharing()
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
    sharing: Sharing = field(default_factory=Sharing)

    @property
    def tosses(self) -> bool:
        """Whether some rule needs a coin, and so the secret."""
        return any(task.review.sample for task in self.tasks.values())


def load(text: str, *, file: str, read: Read, offers: Offers, locate: Locate | None = None) -> Policy:
    """The policy that `text` holds. Raises PolicyError with every fault found: file, line, field, and the mend."""
    doc = document.parse(text, file)
    found = list(doc.faults)
    spec: PolicySpec | None
    try:
        spec = PolicySpec.model_validate(doc.data)
    except ValidationError as error:
        wrong = misfits(error, PolicySpec, doc.data)
        found.extend(fresh(list(explain(wrong, doc)), found))
        spec = salvage(PolicySpec, doc.data, wrong)
    if spec is None:
        raise PolicyError(_in_file_order(found))
    resolver = Resolver(doc, read, offers, locate)
    models = {name: resolver.model(name, model) for name, model in spec.models.items()}
    tasks = {name: resolver.task(name, task) for name, task in spec.tasks.items()}
    found.extend(fresh(resolver.found, found))
    found.extend(fresh(list(faults.find(models, tasks, doc)), found))
    if found:
        raise PolicyError(_in_file_order(found))
    warnings = (*resolver.warnings, *faults.warn(models, tasks))
    return Policy(models, tasks, spec.secret_env, _digest(models, tasks), resolver.prices, warnings, spec.sharing)


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
