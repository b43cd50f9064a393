"""Salvage: what can still be checked of a policy that does not validate, so that one run shows every fault."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from sluiceway.core.document import Path
from sluiceway.core.errors import Fault
from sluiceway.core.explain import Misfit, misfits

_ROUNDS = 10

# What stands in for a part that was lost and that others refer to: nothing is wrong with it.
_MODEL = {
    "base_url": "https://stand.in",
    "model": "-",
    "params": {"max_tokens": 1},
    "price": "free",
    "clearance": "restricted",
}
_ANSWERS: dict[str, Any] = {
    "labels": ["-", "--"],
    "tags": ["-", "--"],
    "text": 1,
    "output": {"type": "object", "properties": {"-": {}}},
}

_Root = TypeVar("_Root", bound=BaseModel)


def salvage(root: type[_Root], data: Any, found: Sequence[Misfit]) -> _Root | None:
    """`data` with its misfits mended, replaced or left out; None where too little is left."""
    data = copy.deepcopy(data)
    for _ in range(_ROUNDS):
        # From the end, so that what is taken out of a list moves nothing that is still to be found.
        for misfit in sorted(found, key=lambda one: [str(part).zfill(9) for part in one.path], reverse=True):
            _mend(misfit, data)
        try:
            return root.model_validate(data)
        except ValidationError as error:
            found = misfits(error, root, data)
    return None


def fresh(faults: Sequence[Fault], known: Sequence[Fault]) -> list[Fault]:
    """Those of `faults` that don't follow from a known one: that are not about the same part of the file."""
    return [fault for fault in faults if not any(_about(fault.field, other.field) for other in known)]


def _about(field: str, known: str) -> bool:
    parent = field.count(".") >= 2 and known.startswith(f"{field}.")
    return parent or field == known or field.startswith(f"{known}.")


def _mend(misfit: Misfit, data: Any) -> None:
    holder, meant = _holder(data, misfit.path), misfit.meant
    match misfit.path:
        case (*_, name) if misfit.unknown and isinstance(holder, dict) and meant and meant not in holder:
            holder[meant] = holder.pop(name)
        case path if misfit.unknown:
            _drop(data, path)
        case ("models", name):
            data["models"][name] = copy.deepcopy(_MODEL)
        case ("models", name, "endpoints", *_):
            data["models"][name]["endpoints"] = [{"base_url": _MODEL["base_url"]}]
        case ("tasks", name, "prompt"):
            data["tasks"][name]["prompt"] = "-"
        case ("tasks", name, "ladder"):
            data["tasks"][name]["ladder"] = [next(iter(data.get("models") or ()), "-")]
        case ("tasks", name, "start" | "refuse" as rules, int(number), "when"):
            data["tasks"][name][rules][number]["when"] = "tokens > 0"
        case ("tasks", name, answer) if answer in _ANSWERS:
            task = data["tasks"][name]
            data["tasks"][name] = {key: task[key] for key in task if key not in ("out_of_scope", "agree_on")}
            data["tasks"][name][answer] = _ANSWERS[str(answer)]
        case (*above, _) if misfit.missing:
            _drop(data, tuple(above))
        case path:
            _drop(data, path)


def _holder(data: Any, path: Path) -> Any:
    """What holds the last part of `path`; None where an earlier mend has taken it away."""
    for part in path[:-1]:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _drop(data: Any, path: Path) -> None:
    holder, last = _holder(data, path), path[-1] if path else None
    if isinstance(holder, dict):
        holder.pop(last, None)
    elif isinstance(holder, list) and isinstance(last, int) and last < len(holder):
        del holder[last]
