"""Our topics as they are declared in topics/*.yaml, and what a cluster has instead.

Nothing here deletes a topic, takes partitions away, or touches a config key that is not declared. Sizes: whatever is
accepted on `jobs` must fit, with its trail, on every topic it can go to (`room_for`), and dead letters are the largest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, for_code

from sluiceway.core.errors import InputError
from sluiceway.kafka.security import Connection

PREFIX = "sluiceway."
SIZE = "max.message.bytes"
DEFAULT_SIZE = 1_048_588  # Apache Kafka's own default of max.message.bytes
_DEAD_LETTER_HEADERS = 64 << 10  # bytes that our facts and the attempts may add to an original, and some
_TOPIC_EXISTS = 36
_APPLIED_WITHIN = 15.0  # seconds
_SPREAD = 2.0  # seconds until every broker knows a new topic
_DYNAMIC_TOPIC_CONFIG = 1  # Kafka's DescribeConfigs: set on this topic, not inherited


@dataclass(frozen=True, slots=True)
class Topic:
    """One declared topic. `config` values are the texts that Kafka takes."""

    name: str
    owner: str
    schema: str
    partitions: int
    replicas: int
    config: Mapping[str, str]

    @property
    def size(self) -> int:
        """The largest record batch it accepts, in bytes."""
        return int(self.config.get(SIZE, DEFAULT_SIZE))


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which the cluster is not as declared. `found` is None where the thing is missing."""

    topic: str
    field: str
    declared: str
    found: str | None
    mend: str

    def __str__(self) -> str:
        found = "is missing" if self.found is None else f"is {self.found}"
        return f"{self.topic}: {self.field} {found}, declared {self.declared}. Mend: {self.mend}"


def directory() -> Path:
    """Where topics/ is: inside the installed package, or beside src/ in a checkout."""
    package = Path(__file__).parent.parent
    for place in (package / "_topics", package.parent.parent / "topics"):
        if place.is_dir():
            return place
    raise InputError("topics", "topics/ is not in this installation. Mend: reinstall sluiceway")


def room_for(jobs_size: int) -> int:
    """What a topic must accept for any accepted job with its trail to fit: 1.4 times a job and 256 KiB, in bytes."""
    return jobs_size * 14 // 10 + (256 << 10)


def declared(
    *,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    replicas: int | None = None,
    partitions: int | None = None,
) -> list[Topic]:
    """All topics of topics/*.yaml, `jobs` first.

    `overrides` maps a topic's name (with or without the prefix) to fields that replace the file's; an unknown name with
    them is one more topic (a foreign source, a task's own results), declared like the topic named by its `like`.
    Sizes follow: where an override lets larger jobs in, the other topics are raised to take them. `replicas` and
    `partitions` replace every file's (1 for the demo). Raises InputError for a file or override that does not fit.
    """
    topics: dict[str, Topic] = {}
    for file in sorted(directory().glob("*.yaml")):
        topic = _topic(yaml.safe_load(file.read_text("utf-8")), str(file.name))
        topics[topic.name] = topic
    for name, fields in (overrides or {}).items():
        base = topics.get(name) or topics.get(PREFIX + name)
        if base is None:
            like = fields.get("like", "results")
            base = topics.get(like) or topics.get(PREFIX + like)
            if base is None:
                raise InputError("topics", f"{name}: like {like!r} names no topic. Mend: one of {', '.join(topics)}")
            base = replace(base, name=name)
        known = {key: value for key, value in fields.items() if key != "like"}
        config = {**base.config, **{key: _text(value) for key, value in known.pop("config", {}).items()}}
        topics[base.name] = _topic({**_fields(base), **known, "config": config}, name)
    inward = [topic.size for topic in topics.values() if topic.schema == "schemas/job.json"]
    least = room_for(max(inward, default=DEFAULT_SIZE))
    ready = []
    for topic in topics.values():
        if topic.schema not in ("schemas/job.json", "schemas/control.json"):
            needed = 2 * least if topic.schema == "schemas/dead-letter.json" else least
            if topic.size < needed:
                topic = replace(topic, config={**topic.config, SIZE: str(needed)})
        copies = replicas or topic.replicas
        insync = min(copies, int(topic.config.get("min.insync.replicas", 1)))
        ready.append(
            replace(
                topic,
                replicas=copies,
                partitions=topic.partitions if partitions is None else min(partitions, topic.partitions),
                config={**topic.config, "min.insync.replicas": str(insync)},
            )
        )
    return sorted(ready, key=lambda topic: (topic.name != PREFIX + "jobs", topic.name))


async def check(connection: Connection, topics: Iterable[Topic]) -> list[Difference]:
    """How the cluster differs from `topics`; empty when all is as declared. More partitions than declared is fine.

    A size counts as different only when it is too small, so that a cluster may allow more.
    """
    topics = list(topics)
    async with _admin(connection) as admin:
        found = await _partitions(admin, [topic.name for topic in topics])
        configs = await _configs(admin, [name for name in found if found[name]])
    differences = []
    for topic in topics:
        count = found.get(topic.name, 0)
        if not count:
            differences.append(Difference(topic.name, "topic", "present", None, "sluiceway topics apply"))
            continue
        if count < topic.partitions:
            differences.append(
                Difference(topic.name, "partitions", str(topic.partitions), str(count), "sluiceway topics apply")
            )
        have = configs.get(topic.name, {})
        for key, value in topic.config.items():
            actual = have.get(key, (str(DEFAULT_SIZE) if key == SIZE else None, 0))[0]
            if actual is None and not have:
                continue  # a broker that tells no configs at all
            if actual == value or (key == SIZE and actual is not None and int(actual) >= int(value)):
                continue
            if actual is None and key != SIZE:
                continue  # the embedded broker tells only what was set
            differences.append(Difference(topic.name, key, value, actual, "sluiceway topics apply"))
    return differences


async def apply(connection: Connection, topics: Iterable[Topic], *, dry_run: bool = False) -> list[Difference]:
    """Make the cluster as declared and return what was (or with `dry_run` would be) changed.

    Creates topics, adds partitions, sets declared config keys; never shrinks and never deletes.
    Raises InputError where the cluster refuses.
    """
    topics = list(topics)
    differences = await check(connection, topics)
    if dry_run or not differences:
        return differences
    by_name = {topic.name: topic for topic in topics}
    async with _admin(connection) as admin:
        fresh = [by_name[d.topic] for d in differences if d.field == "topic"]
        if fresh:
            response = await admin.create_topics(
                [NewTopic(t.name, t.partitions, t.replicas, topic_configs=dict(t.config)) for t in fresh]
            )
            for name, code, *detail in response.topic_errors:
                if code not in (0, _TOPIC_EXISTS):
                    raise InputError("topics", f"{name}: {_refusal(code, detail)}")
        for difference in differences:
            if difference.field == "partitions":
                count = by_name[difference.topic].partitions
                response = await admin.create_partitions({difference.topic: NewPartitions(count)})
                for name, code, *detail in response.topic_errors:
                    if code:
                        raise InputError("topics", f"{name}: {_refusal(code, detail)}")
        changed = {d.topic for d in differences if d.field not in ("topic", "partitions")}
        if changed:
            have = await _configs(admin, sorted(changed))
            resources = []
            for name in sorted(changed):
                # AlterConfigs replaces the whole set: what others set on the topic goes along.
                kept = {k: v for k, (v, source) in have.get(name, {}).items() if source == _DYNAMIC_TOPIC_CONFIG}
                kept.update({d.field: d.declared for d in differences if d.topic == name})
                resources.append(ConfigResource(ConfigResourceType.TOPIC, name, kept))
            for response in await admin.alter_configs(resources):
                for code, message, _, name in response.resources:
                    if code:
                        raise InputError("topics", f"{name}: {_refusal(code, [message])}")
    loop = asyncio.get_running_loop()
    end = loop.time() + _APPLIED_WITHIN
    while await check(connection, topics):  # brokers learn of a change a moment after it was granted
        if loop.time() > end:
            raise InputError(
                "topics", "the cluster took the changes and does not show them. Mend: sluiceway topics check"
            )
        await asyncio.sleep(0.2)
    return differences


async def sizes(connection: Connection, names: Iterable[str], patience: float = 20.0) -> dict[str, int | None]:
    """What each topic accepts (`max.message.bytes`, in bytes), or None where the topic is missing.

    A cluster that answers and is not yet well is asked again for `patience` seconds, and for a missing topic a few: one
    that was just made is not known at once. Raises InputError after that.
    """
    names = list(dict.fromkeys(names))
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while True:
        passed = loop.time() - begin
        try:
            found = await _sizes(connection, names)
            if passed > min(_SPREAD, patience) or None not in found.values():
                return found
        except InputError as error:
            if error.reason == "connection" or not getattr(error.__cause__, "retriable", False) or passed > patience:
                raise
        await asyncio.sleep(0.3)


def require_room(
    found: Mapping[str, int | None], jobs: Iterable[str], onward: Iterable[str], dead_letters: str
) -> None:
    """Raises InputError where a record that one of `jobs` accepts may not fit where it can go to.

    `found` are sizes as the cluster has them. `onward`: the topics that take it with its trail; `dead_letters` takes
    the originals. A topic that is missing is somebody else's message.
    """
    for source in jobs:
        size = found.get(source)
        if size is None:
            continue
        needed = dict.fromkeys(onward, room_for(size)) | {dead_letters: size + _DEAD_LETTER_HEADERS}
        for topic, least in needed.items():
            have = found.get(topic)
            if have is not None and have < least:
                raise InputError(
                    "topics",
                    f"{topic} takes {have} bytes a record, and one of {source} may have {size}."
                    f" Mend: sluiceway topics apply, or set {SIZE}={least} on {topic}",
                )


async def _sizes(connection: Connection, names: list[str]) -> dict[str, int | None]:
    async with _admin(connection) as admin:
        found = await _partitions(admin, names)
        configs = await _configs(admin, [name for name in names if found.get(name)])
    return {
        name: int(configs.get(name, {}).get(SIZE, (str(DEFAULT_SIZE), 0))[0]) if found.get(name) else None
        for name in names
    }


@asynccontextmanager
async def _admin(connection: Connection) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**connection.client())
    try:
        await admin.start()
    except (KafkaError, OSError) as error:
        await admin.close()
        raise InputError(
            "connection", f"no answer from {connection.bootstrap} ({type(error).__name__})."
            " Mend: check -b, security.protocol and that the cluster is up"
        ) from error  # fmt: skip
    try:
        yield admin
    except KafkaError as error:
        raise InputError("topics", f"{connection.bootstrap}: {error}. Mend: is the cluster healthy?") from error
    finally:
        await admin.close()


async def _partitions(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, int]:
    # Asking for a topic by name would create it where auto.create.topics.enable is on: list first.
    present = set(await admin.list_topics()) & set(names)
    if not present:
        return {}
    return {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(sorted(present))}


async def _configs(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, dict[str, tuple[str, int]]]:
    if not names:
        return {}
    found: dict[str, dict[str, tuple[str, int]]] = {}
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    for response in responses:
        for code, message, _, name, entries in response.resources:
            if code:
                raise InputError("topics", f"{name}: {_refusal(code, [message])}")
            found[name] = {entry[0]: (entry[1], int(entry[3])) for entry in entries if entry[1] is not None}
    return found


def _refusal(code: int, detail: list[str | None]) -> str:
    said = next((text for text in detail if text), "")
    return f"the cluster refused: {for_code(code).__name__} {said}".strip()


def _fields(topic: Topic) -> dict[str, Any]:
    return {field: getattr(topic, field) for field in Topic.__slots__}


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _topic(fields: Mapping[str, Any], place: str) -> Topic:
    unknown = set(fields) - set(Topic.__slots__)
    missing = {"name", "partitions", "replicas"} - set(fields)
    if unknown or missing:
        wrong = f"unknown {sorted(unknown)}" if unknown else f"missing {sorted(missing)}"
        raise InputError("topics", f"{place}: {wrong}. Mend: {', '.join(Topic.__slots__)}")
    for field in ("partitions", "replicas"):
        if not isinstance(fields[field], int) or fields[field] < 1:
            raise InputError("topics", f"{place}: {field} is {fields[field]!r}. Mend: a number of at least 1")
    return Topic(
        name=str(fields["name"]),
        owner=str(fields.get("owner", "")),
        schema=str(fields.get("schema", "")),
        partitions=fields["partitions"],
        replicas=fields["replicas"],
        config={key: _text(value) for key, value in fields.get("config", {}).items()},
    )
