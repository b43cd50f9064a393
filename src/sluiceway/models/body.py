"""Request bodies made once per prompt: all bytes before the job's text are kept."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Any

import orjson

from sluiceway.core.call import Call
from sluiceway.core.catalog import Model
from sluiceway.core.errors import Bug, InputError

_KEPT = 128  # templates of one model: prompts x schemas in use at once


@dataclass(frozen=True, slots=True)
class Template:
    """A body's bytes but for the user's text, which comes last."""

    head: bytes

    @classmethod
    def of(cls, body: dict[str, Any]) -> Template:
        """`body["messages"]` must be its last key: the user's message is appended there."""
        encoded = _encode(body)
        if not encoded.endswith(b"]}"):
            raise Bug("messages must be the body's last key")
        joint = b"," if body["messages"] else b""
        return cls(encoded[:-2] + joint + b'{"role":"user","content":')

    def fill(self, text: str) -> bytes:
        return b"".join((self.head, _encode(text), b"}]}"))


class Templates:
    """The templates of one model, by prompt, schema and whether logprobs are asked for."""

    def __init__(self, make: Callable[[Call], Template]) -> None:
        self._make = make
        self._known: dict[tuple[str, str, bool], tuple[Any, Template]] = {}

    def fill(self, call: Call) -> bytes:
        request = call.request
        key = (request.system, request.schema_name, call.logprobs)
        known = self._known.get(key)
        if known is None or (known[0] is not request.schema and known[0] != request.schema):
            known = (request.schema, self._make(call))
            if len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = known
        return known[1].fill(request.user)


def _encode(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError as error:  # orjson.JSONEncodeError: a lone surrogate in the text
        raise InputError("text", f"it can't be written as JSON ({error}). Mend: send valid UTF-8") from None


def keep_reserved(model: Model, reserved: Set[str], deciders: str) -> None:
    """Raises InputError where `extra_body` sets a key that `deciders` decide."""
    if taken := sorted(reserved & set(model.extra_body)):
        detail = f"model {model.name!r}: extra_body can't set {', '.join(taken)}"
        raise InputError("extra_body", f"{detail}. Mend: remove it; {deciders} decide it")
