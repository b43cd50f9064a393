"""The JSON Schemas of our records, made from their types into topics/schemas/: `python -m sluiceway.kafka.schemas`.

With `--check` it writes nothing and fails where a file is not what the types say now.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import TypeAdapter

from sluiceway.core import control
from sluiceway.core.job import JobRecord
from sluiceway.core.outcome import DeadLetter, Escalation, Result, Retry, Review
from sluiceway.core.redriven import Redriven
from sluiceway.kafka.topics import directory

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_RECORDS: Mapping[str, Any] = {
    "job": JobRecord,
    "result": Result,
    "review": Review,
    "escalation": Escalation,
    "retry": Retry,
    "dead-letter": DeadLetter,
    "redriven": Redriven,
    "control": control.Record,
}


def generate() -> dict[str, dict[str, Any]]:
    """Each record's JSON Schema by its name, with `$schema` and `$id`, which pydantic does not write."""
    made = {}
    for name, kind in _RECORDS.items():
        body = TypeAdapter(kind).json_schema(mode="validation", by_alias=True)
        made[name] = {"$schema": _DIALECT, "$id": f"urn:sluiceway:{name}:1", **body}
    return made


def incompatible(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a reader or writer of `old` would trip over in `new`, in words; empty where nothing.

    A property may be added if it is not required. None may go, become required, lose an enum value or change its type.
    """
    return list(_broken(old, new, old, new, "$"))


def _broken(old: Any, new: Any, old_root: Any, new_root: Any, path: str) -> Iterator[str]:
    old, new = _resolved(old, old_root), _resolved(new, new_root)
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return
    for key in ("type", "const"):
        if old.get(key) != new.get(key):
            yield f"{path}: {key} {old.get(key)!r} became {new.get(key)!r}"
    for value in old.get("enum", ()):
        if value not in new.get("enum", ()):
            yield f"{path}: the value {value!r} is gone"
    for name in new.get("required", ()):
        if name not in old.get("required", ()):
            yield f"{path}.{name}: became required"
    for name, part in old.get("properties", {}).items():
        if name not in new.get("properties", {}):
            yield f"{path}.{name}: is gone"
        else:
            yield from _broken(part, new["properties"][name], old_root, new_root, f"{path}.{name}")
    if "items" in old:
        yield from _broken(old["items"], new.get("items"), old_root, new_root, f"{path}[]")
    for key in ("anyOf", "oneOf"):
        for number, (before, after) in enumerate(zip(old.get(key, ()), new.get(key, ()), strict=False)):
            yield from _broken(before, after, old_root, new_root, f"{path}|{number}")
        if len(old.get(key, ())) > len(new.get(key, ())):
            yield f"{path}: takes fewer types"


def _resolved(schema: Any, root: Any) -> Any:
    while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        found = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = found
    return schema


def main(arguments: list[str]) -> int:
    """0 when the files are (now) current, 1 when --check finds one that is not."""
    stale = []
    for name, schema in generate().items():
        file = directory() / "schemas" / f"{name}.json"
        text = json.dumps(schema, indent=2) + "\n"
        if file.is_file() and file.read_text("utf-8") == text:
            continue
        stale.append(file.name)
        if "--check" not in arguments:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
    if stale and "--check" in arguments:
        print(f"not current: {', '.join(stale)}. Mend: python -m sluiceway.kafka.schemas", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
