"""Packing: whatever a model writes and however it is billed, each job gets its own answer or none, and pays its own."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import core

from sluiceway.core import ledger, packing
from sluiceway.core import score as scores
from sluiceway.core.call import Call, Failure, FailureKind, FinishReason, Reply, TokenLogprob, Usage
from sluiceway.core.catalog import Price
from sluiceway.core.parts import parts
from sluiceway.core.task import Gate, ScoreKind
from sluiceway.models.packing import PackedCalls

USAGES = st.builds(Usage, *[st.integers(0, 10**7)] * 6)
COUNT = 6
ANSWERS = st.one_of(
    st.builds(lambda label: {"label": label}, st.text(st.characters(exclude_categories=["Cs"]), max_size=8)),
    st.none(), st.integers(), st.booleans(), st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    st.lists(st.integers(), max_size=3),
)  # fmt: skip
NUMBERS = st.sampled_from([*map(str, range(COUNT + 3)), "01", " 1", "1.0", "label", "", "\u0661"])
MEMBERS = st.lists(st.tuples(NUMBERS, ANSWERS), max_size=12)


def written(members: list[tuple[str, Any]], indent: bool, ascii_only: bool) -> str:
    """One JSON object that may say a key twice."""
    comma, colon = (",\n  ", ": ") if indent else (",", ":")
    inner = comma.join(
        f"{json.dumps(name, ensure_ascii=ascii_only)}{colon}{json.dumps(value, ensure_ascii=ascii_only)}"
        for name, value in members
    )
    return f"{{ {inner} }}" if indent else f"{{{inner}}}"


@given(usage=USAGES, weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
@settings(deadline=None)
def test_shares_sum_exactly_and_nobody_pays_for_more_than_his_part(usage: Usage, weights: list[int]) -> None:
    """For every kind of token: input by weight and output evenly, each part at most rounded up; none is negative."""
    shares = packing.shares(usage, weights)
    assert sum(shares, Usage()) == usage
    for share, weight in zip(shares, weights, strict=True):
        for name in ("input_uncached", "input_cache_read", "input_cache_write_5m", "input_cache_write_1h"):
            exact = getattr(usage, name) * weight / sum(weights)
            assert math.floor(exact * (1 - 1e-12)) <= getattr(share, name) <= math.ceil(exact * (1 + 1e-12))
        for name in ("output_text", "output_reasoning"):
            assert getattr(share, name) - getattr(usage, name) // len(weights) in (0, 1)


@given(
    weights=st.lists(st.integers(64, 5000), min_size=2, max_size=50),
    cached=st.floats(0, 1),
    output=st.floats(0, 1),
    most=st.integers(1, 2000),
)
@settings(deadline=None)
def test_no_share_costs_more_than_a_call_of_its_own_could(
    weights: list[int], cached: float, output: float, most: int
) -> None:
    """At the limit of what is packed: nine tenths of the input that all would send alone, the longest answers."""
    whole = int(sum(weights) * 0.9)
    read = int(whole * cached)
    spoken = int(len(weights) * most * output)
    usage = Usage(input_uncached=whole - read, input_cache_read=read, output_text=spoken)
    price = Price.model_validate({"input_mtok": "0.15", "cache_read_mtok": "0.01", "output_mtok": "0.6"})
    for share, weight in zip(packing.shares(usage, weights), weights, strict=True):
        assert ledger.cost(share, price) <= ledger.worst_cost(weight, most, price)


@given(members=MEMBERS, indent=st.booleans(), ascii_only=st.booleans())
@settings(max_examples=500, deadline=None)
def test_each_number_that_stands_once_gets_exactly_its_own_value(
    members: list[tuple[str, Any]], indent: bool, ascii_only: bool
) -> None:
    """In any order, among unknown numbers; a number that stands twice, or not at all, gets nothing."""
    found = parts(Reply(written(members, indent, ascii_only), Usage()), COUNT)
    names = [name for name, _ in members]
    wanted = {int(name): value for name, value in members if names.count(name) == 1 and name in "123456" and name}
    assert {number: json.loads(part.text) for number, part in found.items()} == wanted


@given(
    text=st.one_of(
        st.text(max_size=60),
        st.lists(
            st.sampled_from(
                ["{", "}", '"1"', '"2"', ":", ",", " ", "[", "]", '{"label":"a"}', "```", "json", "\n", "x", "\\", '"']
            ),
            max_size=20,
        ).map("".join),
    ),
    finish=st.sampled_from(FinishReason),
)
@settings(max_examples=500, deadline=None)
def test_garbage_gives_no_job_an_answer_that_is_not_its_own(text: str, finish: FinishReason) -> None:
    """Never an exception; what is found is what json finds under that key, said once."""
    found = parts(Reply(text, Usage(), finish), COUNT)
    if not found or finish is FinishReason.LENGTH:
        return
    pairs = json.loads(text.strip().removeprefix("```json").strip("`"), object_pairs_hook=list)
    for number, part in found.items():
        values = [value for name, value in pairs if name == str(number)]
        assert values == [json.loads(part.text, object_pairs_hook=list)]


@given(members=MEMBERS, keep=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_of_a_reply_that_was_cut_only_whole_answers_count(members: list[tuple[str, Any]], keep: float) -> None:
    """Those before the cut, and a number or a literal only where what follows it shows that it is whole."""
    whole = written(members, indent=False, ascii_only=True)
    text = whole[: int(len(whole) * keep)]
    found = parts(Reply(text, Usage(), FinishReason.LENGTH), COUNT)
    first = dict(reversed(members))
    for number, part in found.items():
        assert json.loads(part.text) == first[str(number)]
    if text != whole:
        assert parts(Reply(text, Usage()), COUNT) == {}


@given(
    labels=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), min_size=2, max_size=5),
    places=st.lists(st.integers(0, 10**6), max_size=20),
    ascii_only=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_a_score_of_a_part_is_that_of_the_tokens_that_touch_its_label(
    labels: list[str], places: list[int], ascii_only: bool
) -> None:
    """However the packed reply is cut into tokens, between or inside characters, across two answers too."""
    members = [(str(number), {"label": label}) for number, label in enumerate(labels, 1)]
    text = written(members, indent=False, ascii_only=ascii_only)
    raw = text.encode()
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    pieces = [raw[first:last] for first, last in itertools.pairwise(edges)]
    tokens = [
        TokenLogprob(piece, -0.01 * (number + 1), ((piece, -0.01 * (number + 1)), (b"\xff\xfe", -5.0)))
        for number, piece in enumerate(pieces)
    ]
    found = parts(Reply(text, Usage(), logprobs=tokens), len(labels))
    gate = Gate(score=ScoreKind.MARGIN, threshold=0.5)
    before = 0
    for number, label in enumerate(labels, 1):
        part = found[number]
        assert b"".join(token.token for token in part.logprobs) == part.text.encode()
        quoted = json.dumps(label, ensure_ascii=ascii_only).encode()
        first = raw.index(b'{"label": ' + quoted, before) + len(b'{"label": "')
        before = last = first + len(quoted) - 2
        wanted = 0.0
        for edge, token in zip(edges, tokens, strict=False):
            if edge < last and edge + len(token.token) > first:
                wanted += token.logprob
        score = scores.from_logprobs(
            gate, Reply(part.text, Usage(), logprobs=part.logprobs), ("label",), per_field=False
        )
        assert math.isclose(score.features["label_logprob"], math.exp(wanted), rel_tol=1e-9)
        # The token itself is no alternative to itself, cut or whole.
        assert score.value is not None
        assert score.value >= math.exp(wanted) - math.exp(-5.0) - 1e-9


class Moody:
    """Models whose calls end by a script: answers for some of the jobs, or a failure; they know what they metered."""

    def __init__(self, moods: list[int]) -> None:
        self.moods = moods
        self.metered = Usage()

    async def call(self, call: Call) -> Reply | Failure:
        mood = self.moods.pop() if self.moods else 0
        usage = Usage(input_uncached=call.request.input_tokens + mood, input_cache_read=mood, output_text=7 + mood)
        self.metered += usage
        await asyncio.sleep(0)
        if mood % 5 == 4:
            return Failure(list(FailureKind)[mood % 3], "http_503", usage=usage)
        texts = re.findall(r"text-(\d+)", call.request.user)
        if not call.request.user.startswith("<job-"):
            return Reply(json.dumps({"label": f"l{texts[0]}"}), usage)
        members = [(str(at), {"label": f"l{text}"}) for at, text in enumerate(texts, 1) if (mood >> at) % 3 != 1]
        random.Random(mood).shuffle(members)
        if mood % 7 == 6:
            members += members[:1]
        return Reply(written(members, indent=False, ascii_only=True), usage)

    async def close(self) -> None:
        pass


@given(
    jobs=st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(1, 2)), min_size=1, max_size=25),
    moods=st.lists(st.integers(0, 2**12), max_size=25),
)
@settings(max_examples=100, deadline=None)
def test_what_the_jobs_pay_is_what_was_metered_and_each_has_its_own_answer(
    jobs: list[tuple[str, int]], moods: list[int]
) -> None:
    """Whatever is packed, missing, double, malformed or failed: nothing is lost, paid twice or mixed up."""
    moody = Moody(list(moods))
    labels = [f"l{number}" for number in range(len(jobs))] + ["none"]
    prompt = "Classify this ticket of a customer. " * 40
    plan = core.plan({"prompt": prompt, "labels": labels, "packing": {"jobs": 5, "wait": "1ms", "tokens": 9999}})

    async def run() -> list[Reply | Failure]:
        models = PackedCalls(moody, {"triage": plan.task}, core.Letters(), core.HandClock(1000.0))
        calls = []
        for number, (tenant, draw) in enumerate(jobs):
            built = plan.prompt.build(plan.prompt.read(core.job(f"text-{number}")), (), 100_000)
            assert isinstance(built, tuple)
            calls.append(Call(plan.models["cheap"], built[0], 0, 1060.0, f"j{number}", draw=draw, tenant=tenant))
        return await asyncio.gather(*[models.call(call) for call in calls])

    found = asyncio.run(run())
    assert sum([event.usage for event in found], Usage()) == moody.metered
    for number, event in enumerate(found):
        assert isinstance(event, Failure) or json.loads(event.text) == {"label": f"l{number}"}
