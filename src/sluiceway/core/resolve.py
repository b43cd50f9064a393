"""Resolving: what a policy leaves to be found elsewhere - files, providers' addresses, prices - put in its place.

What lies outside enters through three functions, so that this stays pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from sluiceway.core.catalog import Api, Endpoint, JsonMode, Model, Price
from sluiceway.core.document import Document, Path
from sluiceway.core.errors import Fault, InputError
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
    json_mode: JsonMode | None = None  # the strictest that the provider takes


Offers = Callable[[str, str, str | None], Offer]
"""What is known of a provider's model in a service tier (None: its standard one)."""
Read = Callable[[str], str]
"""The text of a file named in the policy, relative to it. Raises InputError when it can't be read."""
Locate = Callable[[str], tuple[str, str]]
"""Where a model's file lies, and the sha256 of what is in it. Raises InputError when it can't be read."""


class Resolver:
    """Resolves the models and tasks of one document; `found` and `warnings` collect what it meets on the way.

    `prices` says where each model's price is from.
    """

    def __init__(self, doc: Document, read: Read, offers: Offers, locate: Locate | None) -> None:
        self._doc, self._read, self._offers, self._locate = doc, read, offers, locate
        self.found: list[Fault] = []
        self.warnings: list[str] = []
        self.prices: dict[str, str] = {}

    def _fault(self, path: Path, problem: str, mend: str) -> None:
        self.found.append(self._doc.fault(path, problem, mend))

    def model(self, name: str, model: Model) -> Model:
        """The model with its endpoints, its price and its file in place."""
        offer = self._offers(model.provider, model.model, model.params.service_tier)
        path: Path = ("models", name)
        written = model.model_fields_set
        api = model.api if "api" in written else offer.api or Api.OPENAI
        update: dict[str, Any] = {"name": name, "api": api, "tier": model.tier or name}
        if api in (Api.OPENAI, Api.ANTHROPIC):
            update["endpoints"] = self._endpoints(model, offer, path)
            if "params" not in written:
                mend = "add params: {max_tokens: 200}, the longest answer you pay for"
                self._fault((*path, "params"), "max_tokens is missing", mend)
            if not model.model:
                self._fault((*path, "model"), "the model's name is missing", "add model: and its name at the provider")
        else:
            update |= self._file(model, api, path)
        if "json_mode" not in written and offer.json_mode is not None:
            update["json_mode"] = offer.json_mode
        if "context_window" not in written and offer.context_window:
            update["context_window"] = offer.context_window
        update["price"], self.prices[name] = self._price(name, model, api, offer, path)
        return model.model_copy(update=update)

    def _file(self, model: Model, api: Api, path: Path) -> dict[str, Any]:
        if not model.file:
            self._fault((*path, "file"), f"an {api.value} model needs a file", "add file: and its path")
            return {}
        if self._locate is None:
            return {}
        try:
            place, sha256 = self._locate(model.file)
        except InputError as error:
            self._fault((*path, "file"), error.detail, "correct the path (it is relative to the policy)")
            return {}
        if model.sha256 is not None and model.sha256 != sha256:
            self._fault((*path, "sha256"), f"the file's is {sha256}", "use the file you trust, or write its sha256")
        return {"file": place, "content": sha256}

    def _endpoints(self, model: Model, offer: Offer, path: Path) -> tuple[Endpoint, ...]:
        url = model.base_url or offer.base_url
        if model.endpoints and model.base_url:
            self._fault((*path, "base_url"), "base_url and endpoints are both given", "keep one of the two")
        endpoints = model.endpoints
        if not endpoints:
            if url is None:
                known = f"no address is known for provider {model.provider!r}"
                self._fault((*path, "base_url"), known, "add base_url: https://..., or use a known provider")
                return ()
            endpoints = (Endpoint(base_url=url),)
        keys = {"api_key_env": model.api_key_env, "api_key_file": model.api_key_file}
        for endpoint in endpoints:
            if not endpoint.base_url.startswith(("https://", "http://")):
                self._fault((*path, "base_url"), f"{endpoint.base_url!r} is not a URL", "write https://host/v1")
        return tuple(
            endpoint if endpoint.api_key_env or endpoint.api_key_file else endpoint.model_copy(update=keys)
            for endpoint in endpoints
        )

    def _price(self, name: str, model: Model, api: Api, offer: Offer, path: Path) -> tuple[Price, str]:
        if isinstance(model.price, Price):
            if offer.price is not None and _differs(model.price, offer.price):
                self.warnings.append(f"models.{name}: the price written here differs from {offer.origin}")
            return model.price, "this policy"
        if model.price == "free":
            return Price(), "free, by this policy"
        if offer.price is not None:
            return offer.price, offer.origin
        if api is Api.LOCAL:
            return Price(), "free (runs in the worker)"
        known = f"; known there: {', '.join(offer.similar)}" if offer.similar else ""
        self._fault(
            (*path, "price"),
            f"no price is known for {model.provider or 'no provider'}/{model.model or name}",
            f"add price: {{input_mtok: .., output_mtok: ..}} in USD a million tokens, or price: free{known}",
        )
        return Price(), "unknown"

    def task(self, name: str, task: Task) -> Task:
        """The task with the files it names read in."""
        path: Path = ("tasks", name)
        update: dict[str, Any] = {"name": name}
        if "\n" not in task.prompt and task.prompt.endswith((".j2", ".jinja", ".txt", ".md")):
            update["prompt"] = self._content((*path, "prompt"), task.prompt) or "missing"
        if isinstance(task.output, str):
            update["output"] = self._schema((*path, "output"), task.output)
        if task.examples is not None:
            update["shown"] = self._examples((*path, "examples"), task.examples)
        return task.model_copy(update=update)

    def _content(self, path: Path, file: str) -> str:
        try:
            return self._read(file)
        except InputError as error:
            self._fault(path, error.detail, "correct the path (it is relative to the policy) or create the file")
            return ""

    def _schema(self, path: Path, file: str) -> dict[str, Any]:
        text = self._content(path, file)
        try:
            schema = orjson.loads(text) if text else {}
        except orjson.JSONDecodeError as error:
            self._fault(path, f"{file} is not JSON: {error}", "write a JSON Schema in it")
            return {}
        return schema if isinstance(schema, dict) else {}

    def _examples(self, path: Path, file: str) -> tuple[Example, ...]:
        examples = []
        for number, line in enumerate(self._content(path, file).splitlines(), 1):
            if line.strip():
                try:
                    examples.append(Example.model_validate_json(line))
                except ValidationError:
                    problem = f"line {number} of {file} is not {{id, input, answer}}"
                    self._fault(path, problem, "write one JSON object a line")
        return tuple(examples)


def _differs(written: Price, listed: Price) -> bool:
    names = ("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok")
    return any(getattr(written, key) != getattr(listed, key) for key in names if key in written.model_fields_set)
