"""The ledger bench's books: what our trails say of their calls, against what the model servers metered. Pure.

Calls and attempts meet by model and job text: whatever shares a call (copies of one text, jobs of one pack) is one
account, in which both sides must come to the same, to the pico-dollar and to the token. A call whose reply no trail
holds is lost: it must be on our own list of such calls, and stands apart.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sluiceway.core.call import CACHED
from tests.support.fake_journal import JournalEntry, Metered

NEVER_CAME = frozenset({"timeout", "body_cut", "reset"})
"""Failures of a trail's attempts that say: no reply, and who knows whether it was billed."""

CUT = frozenset({"half", "hang", "stall", "reset"})
"""What a server answered when nothing came, by its own word."""

KINDS = ("once", "retried", "coalesced", "kept", "packed", "lost")
TYPES = ("input_uncached", "input_cache_read", "input_cache_write_5m", "input_cache_write_1h")
TYPES += ("output_text", "output_reasoning")


@dataclass(frozen=True, slots=True)
class Tariff:
    """Whole pico-dollars a token, from so many input tokens of a call on."""

    uncached: int
    cache_read: int
    cache_write: int
    output: int
    dearer: tuple[int, Tariff] | None = None

    def cost(self, metered: Metered) -> int:
        if self.dearer is not None and metered.input >= self.dearer[0]:
            return self.dearer[1].cost(metered)
        written = metered.input_cache_write_5m  # none of these servers writes for an hour
        return (
            metered.input_uncached * self.uncached
            + metered.input_cache_read * self.cache_read
            + written * self.cache_write
            + metered.output * self.output
        )


@dataclass(slots=True)
class Row:
    """One model's calls of one kind. Amounts in pico-dollars."""

    attempts: int = 0
    calls: int = 0
    ledger: int = 0
    metered: int = 0


@dataclass(slots=True)
class _Account:
    texts: set[str] = field(default_factory=set)
    attempts: list[Mapping[str, Any]] = field(default_factory=list)
    entries: list[JournalEntry] = field(default_factory=list)
    listed: Counter[str] = field(default_factory=Counter)  # by text, how often a reply never came, by our own word


@dataclass(slots=True)
class Books:
    """What was found. `breaches` is empty where all adds up."""

    rows: dict[tuple[str, str], Row] = field(default_factory=lambda: defaultdict(Row))
    breaches: list[str] = field(default_factory=list)
    listed: int = 0
    unasked: int = 0  # listed as lost, though no server knows of them: killed before they went out

    @property
    def ledger(self) -> int:
        return sum(row.ledger for row in self.rows.values())

    @property
    def metered(self) -> int:
        return sum(row.metered for row in self.rows.values())

    @property
    def lost(self) -> int:
        return sum(row.metered for (_, kind), row in self.rows.items() if kind == "lost")


def compared(
    texts: Mapping[str, str],
    lines: Iterable[Mapping[str, Any]],
    entries: Iterable[JournalEntry],
    tariffs: Mapping[str, Tariff],
    wire: Mapping[str, str],
) -> Books:
    """The books of a run. `texts` by job id; `lines` as `_ledger_work` writes them; `wire`: a model's name there."""
    books = Books()
    for (model, _), account in _accounts(texts, lines, entries, wire).items():
        _close(books, model, account, tariffs[model])
    return books


def _accounts(
    texts: Mapping[str, str],
    lines: Iterable[Mapping[str, Any]],
    entries: Iterable[JournalEntry],
    wire: Mapping[str, str],
) -> dict[tuple[str, str], _Account]:
    known = list(entries)
    leader: dict[tuple[str, str], str] = {}  # by model and text

    def found(model: str, text: str) -> str:
        first = leader.setdefault((model, text), text)
        while leader[model, first] != first:
            first = leader[model, first]
        leader[model, text] = first
        return first

    for entry in known:
        first, *others = (entry.text or "").split("\n")
        for other in others:
            leader[entry.model, found(entry.model, other)] = found(entry.model, first)
    accounts: dict[tuple[str, str], _Account] = defaultdict(_Account)
    for entry in known:
        told = (entry.text or "").split("\n")
        account = accounts[entry.model, found(entry.model, told[0])]
        account.entries.append(entry)
        account.texts.update(told)
    for line in lines:
        if "lost" in line:
            model = wire[line["model"]]
            text = texts[line["lost"]]
            accounts[model, found(model, text)].listed[text] += 1
        elif "id" in line:
            text = texts[line["id"]]
            for attempt in line["tried"]:
                model = wire[attempt["model"]]
                account = accounts[model, found(model, text)]
                account.attempts.append(attempt)
                if (attempt["failure"] or "").partition(": ")[2] in NEVER_CAME:
                    account.listed[text] += 1
    return accounts


def _close(books: Books, model: str, account: _Account, tariff: Tariff) -> None:
    attempts, entries = account.attempts, account.entries
    name = f"{model} {sorted(account.texts)[:1]}"
    ours = {attempt["response_id"] for attempt in attempts if attempt["response_id"]}
    strangers = ours - {entry.response_id for entry in entries}
    if strangers:
        books.breaches.append(f"replies that no server gave: {sorted(strangers)[:3]}, {name}")
    lost = _lost(books, name, account, ours)
    gone = {entry.seq for entry in lost}
    billed = [entry for entry in entries if entry.metered is not None and entry.seq not in gone]
    row = books.rows[model, _kind(attempts, entries)]
    row.attempts += len(attempts)
    row.calls += len(entries) - len(lost)
    ledger, metered = sum(each["cost"] for each in attempts), _cost(tariff, billed)
    row.ledger += ledger
    row.metered += metered
    if lost:
        apart = books.rows[model, "lost"]
        apart.calls += len(lost)
        apart.metered += _cost(tariff, lost)
    if ledger != metered:
        books.breaches.append(f"{ledger} in the ledger, {metered} metered: {name}")
    tokens, counted = _tokens([each["usage"] for each in attempts]), _tokens(_plain(billed))
    if tokens != counted:
        books.breaches.append(f"{dict(tokens)} tokens in the trails, {dict(counted)} metered: {name}")


def _lost(books: Books, name: str, account: _Account, ours: Collection[str]) -> list[JournalEntry]:
    """The calls whose reply nobody has. Each of their jobs must say that it waited for one in vain."""
    left = account.listed.copy()
    cut = [entry for entry in account.entries if entry.answered in CUT]
    unowned = [entry for entry in account.entries if entry.answered == "answer" and entry.response_id not in ours]
    lost = []
    for entry in (*cut, *unowned):
        texts = (entry.text or "").split("\n")
        told = all(left[text] > 0 for text in texts)
        if not told and len(texts) > 1 and entry in unowned:
            continue  # a pack without one good answer: each of its jobs has called for itself, and paid its share
        if not told:
            books.breaches.append(f"a lost call on nobody's list: {entry.response_id}, {name}")
        left.subtract(texts)
        lost.append(entry)
    struck = {text for entry in lost for text in (entry.text or "").split("\n")}
    books.listed += account.listed.total()
    books.unasked += sum(count for text, count in account.listed.items() if text not in struck)
    return lost


def _cost(tariff: Tariff, entries: Iterable[JournalEntry]) -> int:
    return sum(tariff.cost(entry.metered) for entry in entries if entry.metered is not None)


def _plain(entries: Sequence[JournalEntry]) -> list[dict[str, int]]:
    """What each reply says of its tokens: Anthropic's does not tell thinking from text."""
    told = []
    for entry in entries:
        if entry.metered is not None:
            usage = {name: getattr(entry.metered, name) for name in TYPES}
            if entry.path.endswith("/messages"):
                usage["output_text"] += usage["output_reasoning"]
                usage["output_reasoning"] = 0
            told.append(usage)
    return told


def _tokens(usages: Iterable[Mapping[str, int]]) -> Counter[str]:
    total = Counter(dict.fromkeys(TYPES, 0))
    for usage in usages:
        total.update(usage)
    return total


def _kind(attempts: Sequence[Mapping[str, Any]], entries: Sequence[JournalEntry]) -> str:
    """The first that is true of an account: a pack's jobs may have been tried again as well."""
    if any("\n" in (entry.text or "") for entry in entries):
        return "packed"
    made = Counter(each["response_id"] for each in attempts if each["response_id"] and each["endpoint"] != CACHED)
    if any(copies > 1 for copies in made.values()):
        return "coalesced"
    if any(attempt["endpoint"] == CACHED for attempt in attempts):
        return "kept"
    return "retried" if any(attempt["failure"] for attempt in attempts) else "once"
