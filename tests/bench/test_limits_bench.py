"""The limits bench, run small: what it counts is the server's, and no figure of it is held to a time."""

from __future__ import annotations

import pytest

from tests.bench._limit_figures import Journal
from tests.bench._limited import ANSWER_TOKENS, Server, tokens_of
from tests.bench.test_stream_benches import run


@pytest.mark.slow
def test_the_server_never_admits_above_its_limit_whatever_asks() -> None:
    """Buckets and fixed minutes, both kinds of headers; the limit of the first kind halves on the way."""
    names = ("requests-openai", "tokens-anthropic", "windows-requests")
    found = run("limits", "--minutes", "0.1", "--after", "4", *(part for name in names for part in ("--only", name)))
    rows = {row["name"]: row for row in found["rows"]}
    assert sorted(rows) == sorted(names)
    assert all(row["requests"] > 20 for row in rows.values())
    assert rows["requests-openai"]["most_admitted"] <= 1.0
    assert rows["tokens-anthropic"]["most_admitted"] <= 1.0
    assert "back_s" in rows["requests-openai"]
    assert "back_s" not in rows["windows-requests"]
    assert all(row["held"] == all(row["laws"].values()) for row in rows.values())


@pytest.mark.slow
@pytest.mark.usefixtures("apache_kafka")
def test_the_workers_of_the_limits_bench_come_and_go_below_the_limit() -> None:
    """One, three, one by kill -9 less, one: the server's journal has their requests, and admits none above."""
    [row] = run("limits", "--minutes", "0.3", "--only", "workers-requests")["rows"]
    assert [what for _, what in row["steps"]] == ["two more start", "kill -9 of one", "one is stopped", "the end"]
    assert row["requests"] > 100
    assert row["most_admitted"] <= 1.0


@pytest.mark.parametrize("headers", ["openai", "anthropic"])
def test_the_server_refuses_beyond_either_limit_and_tells_both(headers: str) -> None:
    """Five seconds' worth at once, then 429 with a Retry-After, in the provider's own words."""
    server = Server({"rpm": 60, "tpm": 600, "headers": headers})
    body = b'{"messages": [{"role": "user", "content": "%s"}]}' % (b"x" * 20)
    assert tokens_of({"messages": [{"role": "user", "content": "x" * 20}]}) == 15 + ANSWER_TOKENS
    answers = [server.answer(b"/v1/chat/completions", body)[1] for _ in range(4)]
    statuses = [answer.split(b" ")[1] for answer in answers]
    assert statuses == [b"200", b"200", b"429", b"429"]  # 50 tokens at most, of 20 each
    prefix = b"x-ratelimit" if headers == "openai" else b"anthropic-ratelimit"
    assert all(answer.count(prefix) == 6 for answer in answers)
    assert b"retry-after: " in answers[2]


def _journal(*requests: tuple[float, int, bool], limits: tuple[tuple[float, float, float], ...]) -> Journal:
    return Journal({"requests": requests, "limits": limits})


def test_a_share_is_of_the_limit_that_binds() -> None:
    """Ten requests of 100 tokens in ten seconds: a sixth of 360 requests a minute, half of 12,000 tokens."""
    journal = _journal(*((float(second), 100, True) for second in range(10)), limits=((0.0, 360.0, 12_000.0),))
    assert journal.share(journal.limits[0], 0.0) == pytest.approx(0.5)


def test_what_was_refused_counts_as_asked_and_not_as_used() -> None:
    """One request a second of 60 a minute, and as many refused: all of it used, twice as much asked for."""
    both = ((float(second), 1, admitted) for second in range(60) for admitted in (True, False))
    journal = _journal(*both, limits=((0.0, 60.0, 1e9),))
    assert journal.share(journal.limits[0], 10.0) == pytest.approx(1.0)
    assert journal.refused(0.0, 60.0) == 0.5
    assert journal.most_asked(journal.limits[0], 0.0, 60.0, 10.0) == pytest.approx(20 / 15)
    assert journal.most_admitted(10.0) == pytest.approx(10 / 15)


def test_back_is_when_no_later_window_is_below() -> None:
    """The limit halves at 20 s and nothing goes out for ten: the last window below nine tenths ends after 30 s."""
    seconds = [*range(20), *(30 + 2 * number for number in range(20))]
    journal = _journal(*((float(at), 1, True) for at in seconds), limits=((0.0, 60.0, 1e9), (20.0, 30.0, 1e9)))
    assert 15.0 < journal.back_within(0.9) <= 20.5
    assert _journal(*((float(at), 1, True) for at in range(20)), limits=((0.0, 60.0, 1e9), (5.0, 120.0, 1e9))
                    ).back_within(0.9) == float("inf")  # fmt: skip
