"""What a fake model says: pure functions from a request to an answer or a fault.

A script reads nothing but its request, so the same job gets the same answer whatever the order of arrival.
Chance is a hash of (seed, job text), never dice. `seen` (how often the fake saw this job before, for this model)
is part of the request, so "fail twice, then answer" is a pure script too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tests.support.fake_journal import Metered

JsonMode = Literal["strict", "on", "tool", "off"]


@dataclass(frozen=True, slots=True)
class FakeRequest:
    """One request, decoded from either wire format. `text` is the job text alone, `user` the whole user message."""

    seq: int
    api: Literal["openai", "anthropic"]
    model: str
    system: str
    user: str
    text: str
    schema: Mapping[str, Any] | None = None
    json_mode: JsonMode = "off"
    logprobs: bool = False
    top_logprobs: int = 0
    max_tokens: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    seen: int = 0

    def share(self, purpose: str, seed: int = 0) -> float:
        """A number in [0, 1) that depends on seed, purpose and job text only."""
        digest = hashlib.blake2b(f"{seed}:{purpose}:{self.text}".encode("utf-8", "surrogatepass"), digest_size=7)
        return int.from_bytes(digest.digest()) / 2**56


@dataclass(frozen=True, slots=True)
class FakeAnswer:
    """A well-formed reply. `value` is sent as compact JSON; `text` (which wins) is sent as it is.

    `confidence` is the probability of each scalar in `value` (or by top-level field), of the whole in free `text`.
    `straddle` glues the opening quote to a label's first token, as real tokenizers may.
    """

    value: Any = None
    text: str | None = None
    confidence: float | Mapping[str, float] = 0.99
    finish: Literal["stop", "length", "content_filter"] = "stop"
    refusal: str | None = None
    delay: float = 0.0
    logprobs: bool = True
    straddle: bool = False
    metered: Metered | None = None
    reasoning_tokens: int = 0
    model_served: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


FaultKind = Literal[
    "status", "hang", "slow", "stall", "half", "html", "gzip_bomb", "reset", "redirect", "not_json", "wrong_shape"
]


@dataclass(frozen=True, slots=True)
class FakeFault:
    """Something wrong on the wire.

    `status`: an error body in the API's own shape, with `status` and `headers`. `hang`: never answers. `slow`: one byte
    in `interval` seconds. `stall`: headers, then nothing. `half`: closes after half the body. `html`: a page with
    200. `gzip_bomb`: 64 MiB of spaces in 64 KiB. `reset`: RST before any byte. `redirect`: 302 to `location`.
    `not_json`: 200 with cut JSON. `wrong_shape`: 200 with JSON that is no reply.
    """

    kind: FaultKind
    status: int = 503
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    interval: float = 1.0
    location: str = ""
    answer: FakeAnswer = field(default_factory=lambda: FakeAnswer(text="never seen whole"))


Script = Callable[[FakeRequest], FakeAnswer | FakeFault]


# -- what the schema asks for ------------------------------------------------------------------------------------------


def _resolve(schema: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    ref = schema.get("$ref")
    if not isinstance(ref, str):
        return schema
    found: Any = root
    for part in ref.removeprefix("#/").split("/"):
        found = found[part]
    return _resolve(found, root)


def value_for(schema: Mapping[str, Any], pick: Callable[[str, int], int], root: Mapping[str, Any] | None = None) -> Any:
    """A value valid against the usual answer schemas; `pick(path, n)` chooses among n alternatives at a place."""
    return _value(schema, pick, root or schema, "")


def _value(schema: Mapping[str, Any], pick: Callable[[str, int], int], root: Mapping[str, Any], path: str) -> Any:
    schema = _resolve(schema, root)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][pick(path, len(schema["enum"]))]
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return _value(schema[union][0], pick, root, path)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if kind == "object":
        return {name: _value(part, pick, root, f"{path}/{name}") for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return _array(schema, pick, root, path)
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 9)
        return low + pick(path, int(high - low) + 1)
    if kind == "boolean":
        return bool(pick(path, 2))
    if kind == "null":
        return None
    words = ("alpha", "beta", "gamma", "delta")
    return words[pick(path, len(words))][: schema.get("maxLength", 100)]


def _array(schema: Mapping[str, Any], pick: Callable[[str, int], int], root: Mapping[str, Any], path: str) -> list[Any]:
    items = _resolve(schema.get("items", {"type": "string"}), root)
    size = max(schema.get("minItems", 1), min(schema.get("maxItems", 2), 1 + pick(f"{path}/#", 2)))
    members = [_value(items, pick, root, f"{path}/{place}") for place in range(size)]
    return list(dict.fromkeys(members)) if "enum" in items else members


def schema_of(request: FakeRequest) -> Mapping[str, Any] | None:
    """The answer schema: from the wire, else (plain JSON mode) the first one written out in the prompt."""
    if request.schema is not None:
        return request.schema
    decoder = json.JSONDecoder()
    for message in (request.system, request.user):
        for start in re.finditer(r"\{", message):
            try:
                found, _ = decoder.raw_decode(message, start.start())
            except ValueError:
                continue
            if isinstance(found, dict) and ("properties" in found or "enum" in found):
                return found
    return None


# -- ready scripts -----------------------------------------------------------------------------------------------------


def labels(
    *, seed: int = 0, doubt: float = 0.0, doubted: float = 0.5, confidence: float = 0.99, delay: float = 0.0
) -> Script:
    """Schema-valid answers by hash; a `doubt` share of jobs, by hash of their text, gets probability `doubted`."""

    def script(request: FakeRequest) -> FakeAnswer:
        sure = doubted if request.share("doubt", seed) < doubt else confidence
        schema = schema_of(request)
        if schema is None:
            return FakeAnswer(text=f"Answer {int(request.share('text', seed) * 1000)}.", confidence=sure, delay=delay)

        def pick(path: str, alternatives: int) -> int:
            return int(request.share(f"pick{path}", seed) * alternatives)

        return FakeAnswer(value=value_for(schema, pick), confidence=sure, delay=delay)

    return script


def told(otherwise: Script) -> Script:
    """Answers what a marker in the job text says (`[[answer:{"label":"login"}]]`, `[[sure:0.4]]`); else `otherwise`.

    For tests that need to know one job's answer beforehand; the text of an attack belongs in `obedient`.
    """

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        answer = re.search(r"\[\[answer:(.*?)\]\]", request.text, re.S)
        sure = re.search(r"\[\[sure:([0-9.]+)\]\]", request.text)
        if answer is None and sure is None:
            return otherwise(request)
        given = otherwise(request)
        value = given.value if isinstance(given, FakeAnswer) else None
        confidence = given.confidence if isinstance(given, FakeAnswer) else 0.99
        return FakeAnswer(
            value=value if answer is None else None,
            text=answer[1] if answer else None,
            confidence=float(sure[1]) if sure else confidence,
        )

    return script


_SAY = r"(?:reply|respond|answer|output|print|say)\s+(?:only\s+)?(?:with\s+)?(?:exactly\s+)?[:\s]*"
_CALL = r"(?:classify|label|mark|tag|route|treat)\s+(?:this|it|the ticket)\s+as\s+"
_SET = r"(?:category|label|answer|tier|model|priority|stakes)\s*(?:is|=|:|to|must be)\s*"
_ORDERS = (
    # The widest first: an order to print something outweighs an order to pick a label.
    re.compile(_SAY + r"(\{.*?\})", re.IGNORECASE | re.DOTALL),
    re.compile(_SAY + r"[\"'`](.+?)[\"'`]", re.IGNORECASE),
    re.compile(_CALL + r"[\"'`]?([\w.-]+)", re.IGNORECASE),
    re.compile(_SET + r"[\"'`]?([\w.-]+)", re.IGNORECASE),
)


def obedient(otherwise: Script, *, confidence: float = 0.9999) -> Script:
    """A gullible model: it does whatever the job text (never the system prompt) orders, and is very sure of it.

    An ordered JSON object is sent as it is; any other order fills every field, whether or not the schema allows it.
    Text without an order gets `otherwise`.
    """

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        ordered = next((found[1] for order in _ORDERS if (found := order.search(request.text))), None)
        if ordered is None:
            return otherwise(request)
        schema = schema_of(request)
        if ordered.startswith("{") or schema is None:
            return FakeAnswer(text=ordered, confidence=confidence)
        return FakeAnswer(value=dict.fromkeys(schema.get("properties", {"label": {}}), ordered), confidence=confidence)

    return script


def faulty(
    otherwise: Script, fault: FakeFault, *, share: float = 1.0, times: int | None = None, seed: int = 0
) -> Script:
    """`fault` for a `share` of jobs, on each one's first `times` requests (None: on all of them); else `otherwise`."""

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        struck = request.share(f"fault {fault.kind} {fault.status}", seed) < share
        return fault if struck and (times is None or request.seen < times) else otherwise(request)

    return script


def any_of(otherwise: Script, faults: Sequence[FakeFault], *, share: float = 1.0, seed: int = 0) -> Script:
    """One of `faults` for a `share` of requests, each request of a job for itself; else `otherwise`."""

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        if request.share(f"any {request.seen}", seed) >= share:
            return otherwise(request)
        return faults[int(request.share(f"which {request.seen}", seed) * len(faults))]

    return script


LATE = "[[late]]"
"""A job whose text holds this is among the late ones of `late`, whatever their share."""


def late(otherwise: Script, *, delay: float, share: float = 1.0, seed: int = 0) -> Script:
    """A `share` of jobs, and each that holds the marker LATE, is answered `delay` seconds after it came."""

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        said = otherwise(request)
        struck = LATE in request.text or request.share("late", seed) < share
        return replace(said, delay=delay) if struck and isinstance(said, FakeAnswer) else said

    return script


def refusing(otherwise: Script, *, share: float = 1.0, seed: int = 0) -> Script:
    """The model declines a `share` of jobs, in the manner of its API."""
    refusal = FakeAnswer(refusal="I can't help with that.")
    return lambda request: refusal if request.share("refuse", seed) < share else otherwise(request)


def malformed(otherwise: Script, *, share: float = 1.0, seed: int = 0) -> Script:
    """A `share` of jobs gets an answer that no schema takes: cut JSON, a wrong label, prose, a list, nothing."""
    broken: Sequence[str] = ('{"label": "bil', '{"label":"no-such-label"}', "Sure! The label is billing.", "[]", "")

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        if request.share("malformed", seed) >= share:
            return otherwise(request)
        return FakeAnswer(text=broken[int(request.share("broken", seed) * len(broken))])

    return script


def incapable(otherwise: Script, *, json_schema: bool = True, logprobs: bool = True) -> Script:
    """A model that lacks a feature: `json_schema` gets a 400, as with DeepSeek's chat; logprobs come as null."""
    refused = FakeFault("status", 400, "invalid_request_error")

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        if not json_schema and request.json_mode == "strict":
            return refused
        said = otherwise(request)
        return replace(said, logprobs=False) if not logprobs and isinstance(said, FakeAnswer) else said

    return script


def with_headers(otherwise: Script, headers: Mapping[str, str]) -> Script:
    """Every answer and fault of `otherwise`, with these response headers (rate limits, say)."""

    def script(request: FakeRequest) -> FakeAnswer | FakeFault:
        said = otherwise(request)
        return replace(said, headers={**headers, **said.headers})

    return script


def by_model(scripts: Mapping[str, Script], otherwise: Script) -> Script:
    """One fake that serves several models, each by its own script."""
    return lambda request: scripts.get(request.model, otherwise)(request)


# -- scripts by name, for a fake in its own process --------------------------------------------------------------------

_STATUSES = {"429": 429, "500": 500, "502": 502, "503": 503, "529": 529, "400": 400, "401": 401, "404": 404}


def _number(text: str) -> float:
    return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)


def _options(parts: Sequence[str]) -> dict[str, str]:
    return dict(part.split("=", 1) for part in parts)


def named(spec: str) -> Script:
    """A script from words: layers joined by `|`, outermost last.

    `labels seed=1 doubt=10% delay=0.05 | late share=1% delay=2 | malformed share=5% | refuse share=1% | told |
    obedient | 429 share=30% times=1 retry-after=5 | hang share=1% | slow | half | ... | no-json-schema | no-logprobs |
    any share=30% of=503+reset+429,retry-after=5 | headers x-ratelimit-limit-requests=500`. A retry-after of `date:5` is
    sent as the HTTP date five seconds on. ValueError names an unknown word.
    """
    script: Script = labels()
    for layer in spec.split("|"):
        name, *rest = layer.split()
        options = _options(rest)
        share, seed = _number(options.pop("share", "1")), int(options.pop("seed", "0"))
        if name == "labels":
            script = labels(seed=seed, **{key: _number(value) for key, value in options.items()})
        elif name == "told":
            script = told(script)
        elif name == "obedient":
            script = obedient(script)
        elif name == "late":
            script = late(script, delay=_number(options["delay"]), share=share, seed=seed)
        elif name == "refuse":
            script = refusing(script, share=share, seed=seed)
        elif name == "malformed":
            script = malformed(script, share=share, seed=seed)
        elif name in ("no-json-schema", "no-logprobs"):
            script = incapable(script, json_schema=name != "no-json-schema", logprobs=name != "no-logprobs")
        elif name == "headers":
            script = with_headers(script, options)
        elif name == "any":
            pieces = [piece.split(",") for piece in options["of"].split("+")]
            script = any_of(script, [_fault(word, _options(more)) for word, *more in pieces], share=share, seed=seed)
        else:
            times = int(options["times"]) if "times" in options else None
            script = faulty(script, _fault(name, options), share=share, times=times, seed=seed)
    return script


def _fault(name: str, options: Mapping[str, str]) -> FakeFault:
    headers = {key: value for key, value in options.items() if key.startswith(("retry-after", "x-"))}
    delay, interval = _number(options.get("delay", "0")), _number(options.get("interval", "1"))
    code, location = options.get("code", ""), options.get("location", "")
    if name in _STATUSES:
        return FakeFault("status", _STATUSES[name], code, headers, delay)
    kinds: tuple[FaultKind, ...] = (
        "hang", "slow", "stall", "half", "html", "gzip_bomb", "reset", "redirect", "not_json", "wrong_shape",
    )  # fmt: skip
    for kind in kinds:
        if name == kind:
            return FakeFault(kind, 200, code, headers, delay, interval, location)
    raise ValueError(f"no script or fault is called {name!r}; known: labels, late, told, obedient, refuse, malformed, "
                     "no-json-schema, no-logprobs, headers, any, "
                     f"{', '.join(_STATUSES)}, {', '.join(kinds)}")  # fmt: skip
