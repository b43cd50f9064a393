"""The models edge on real sockets: one transport and the pool, against the fake model server and against raw bytes."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.support.certificates import Certificates
from tests.support.fake_models import FakeAnswer, FakeFault, FakeModels, Metered, labels
from tests.support.fake_scripts import faulty
from tests.support.model_calls import CLOCK, ask, call, model, opened

from sluiceway.core.call import Failure, FailureKind, FinishReason, Reply, Usage
from sluiceway.core.catalog import Api, Endpoint, JsonMode, Limits, Model
from sluiceway.core.errors import Bug, InputError
from sluiceway.models import tokens
from sluiceway.models.pool import Pool


async def fault(told: FakeFault, **given: Any) -> Failure:
    async with FakeModels(lambda _: told) as fake:
        found = await ask(fake.url, **given)
        assert isinstance(found, Failure), found
        assert found.endpoint == fake.url
        return found


@pytest.mark.parametrize("api", [Api.OPENAI, Api.ANTHROPIC])
@pytest.mark.parametrize("mode", list(JsonMode))
async def test_an_answer_comes_back_with_exactly_the_metered_usage(api: Api, mode: JsonMode) -> None:
    """Both formats, all JSON modes: what the server meters is what the reply says, and the text is the answer's."""
    metered = Metered(input_uncached=30, input_cache_read=64, output_text=5)
    async with FakeModels(lambda _: FakeAnswer(value={"label": "login"}, metered=metered)) as fake:
        one = model(fake.url, api=api, json_mode=mode)
        async with opened(one) as pool:
            found = await pool.call(call(one, logprobs=True))
        assert isinstance(found, Reply), found
        assert orjson.loads(found.text) == {"label": "login"}
        assert found.usage == Usage(input_uncached=30, input_cache_read=64, output_text=5)
        assert found.model_served == "tiny"
        assert found.response_id == fake.journal.entries[0].response_id
        assert found.endpoint == fake.url
        assert b"".join(token.token for token in found.logprobs) in (found.text.encode(), b"")
        if api is Api.OPENAI and mode is JsonMode.STRICT:
            assert found.logprobs


async def test_a_refusal_is_declined_in_both_formats() -> None:
    """The model would not answer; that is a reply, and it is billed."""
    async with FakeModels(lambda _: FakeAnswer(refusal="No.")) as fake:
        for api in (Api.OPENAI, Api.ANTHROPIC):
            one = model(fake.url, api=api)
            async with opened(one) as pool:
                found = await pool.call(call(one))
            assert isinstance(found, Reply)
            assert found.finish is FinishReason.DECLINED
            assert found.usage.output > 0


async def test_no_redirect_is_followed() -> None:
    """Its target would get the key and the job."""
    async with FakeModels() as trap:
        told = FakeFault("redirect", location=f"{trap.url}/v1/chat/completions")
        found = await fault(told)
        assert (found.kind, found.detail) == (FailureKind.INVALID, "redirect")
        assert trap.journal.entries == []


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stray variable must not send jobs elsewhere."""
    async with FakeModels() as trap, FakeModels(lambda _: FakeAnswer(value={"label": "login"})) as fake:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy"):
            monkeypatch.setenv(name, trap.url)
        monkeypatch.setenv("no_proxy", "")
        assert isinstance(await ask(fake.url), Reply)
        assert trap.journal.entries == []


async def test_only_a_certificate_that_somebody_trusted_vouches_for_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's is refused for good; one of an authority that the machine's owner trusts is not."""
    certificates = Certificates(tmp_path / "tls")
    certificates.make()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.server)
    async with FakeModels(lambda _: FakeAnswer(value={"label": "login"}), tls=server) as fake:
        found = await ask(fake.url)
        assert isinstance(found, Failure)
        assert (found.kind, found.detail) == (FailureKind.INVALID, "tls_certificate")
        assert fake.journal.entries == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
        assert isinstance(await ask(fake.url), Reply)
        plain = await ask(fake.url.replace("https", "http"))
        assert isinstance(plain, Failure)


async def test_a_gzip_bomb_is_a_failure_and_not_memory() -> None:
    """64 MiB in 64 KiB: reading stops at the limit."""
    found = await fault(FakeFault("gzip_bomb"))
    assert (found.kind, found.detail) == (FailureKind.TRANSIENT, "body_too_large")


@pytest.mark.parametrize("kind", ["hang", "stall", "slow"])
async def test_an_endpoint_that_hangs_ends_at_the_deadline(kind: Any) -> None:
    """The job's deadline, whatever the endpoint does."""
    found = await fault(FakeFault(kind), seconds=0.2)
    assert (found.kind, found.detail) == (FailureKind.TRANSIENT, "timeout")
    assert found.seconds >= 0.2


async def test_the_models_own_time_out_ends_a_call_before_the_jobs_deadline() -> None:
    """Whichever comes first."""
    async with FakeModels(lambda _: FakeFault("hang")) as fake:
        one = model(fake.url, timeout=0.1)
        async with opened(one) as pool:
            found = await pool.call(call(one, seconds=3600))
        assert isinstance(found, Failure)
        assert found.detail == "timeout"


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("half", "body_cut"),
        ("html", "not_json"),
        ("not_json", "not_json"),
        ("wrong_shape", "no_choices"),
        ("reset", "reset"),
    ],
)
async def test_what_breaks_on_the_wire_is_transient(kind: Any, detail: str) -> None:
    """Half a body, a proxy's page, a reset."""
    found = await fault(FakeFault(kind))
    assert (found.kind, found.detail) == (FailureKind.TRANSIENT, detail)


async def test_a_server_that_is_not_there_is_transient() -> None:
    """Connection refused; and a name that does not resolve."""
    for url in ("http://127.0.0.1:1", "http://no-such-host.invalid"):
        found = await ask(url)
        assert isinstance(found, Failure)
        assert (found.kind, found.detail) == (FailureKind.TRANSIENT, "connect")


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry-after": "7"}, 7, 7),
        ({"retry-after-ms": "1500"}, 1.5, 1.5),
        ({"retry-after": format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)}, 60, 60),
        ({"retry-after": "whenever"}, None, None),
        ({}, None, None),
    ],
)
async def test_a_busy_server_says_how_long_to_wait(
    headers: dict[str, str], low: float | None, high: float | None
) -> None:
    """Header names in any case; an absurd wait is cut."""
    found = await fault(FakeFault("status", 429, headers={name.title(): value for name, value in headers.items()}))
    assert found.kind is FailureKind.OVERLOADED
    assert found.retry_after is None if low is None else low <= (found.retry_after or 0) <= (high or 0)


async def test_no_endpoint_is_waited_for_longer_than_the_policy_says() -> None:
    """`limits.longest_retry_after` clamps what it asks for; a shorter wait stays as it is."""
    for asked, waited in (("1000000000", 2.0), ("5", 2.0), ("1", 1.0)):
        told = FakeFault("status", 429, headers={"retry-after": asked})
        async with FakeModels(faulty(labels(), told)) as fake:
            one = model(fake.url, limits=Limits(longest_retry_after=2.0))
            async with opened(one) as pool:
                found = await pool.call(call(one))
        assert isinstance(found, Failure)
        assert found.retry_after == waited


async def test_keys_and_extra_headers_reach_the_endpoint() -> None:
    """Each endpoint gets its own key."""
    async with FakeModels(keys=frozenset({"one", "two"})) as fake:
        endpoints = tuple(Endpoint(base_url=f"{fake.url}/v1", api_key_env=name) for name in ("K1", "K2", "K3"))
        one = model(fake.url, endpoints=endpoints, extra_headers={"X-Team": "support"})
        environ = {"K1": "one", "K2": "two", "K3": "wrong"}
        pool = Pool.open({"m": one}, CLOCK, tokens.default(), environ=environ)
        replies = [await pool.call(call(one, endpoint=number)) for number in range(3)]
        await pool.close()
        assert [isinstance(found, Reply) for found in replies] == [True, True, False]
        assert isinstance(replies[2], Failure)
        assert (replies[2].kind, replies[2].detail) == (FailureKind.INVALID, "invalid_api_key")
        assert len({entry.key_sha256 for entry in fake.journal.entries}) == 3
        assert "x-team" in fake.journal.entries[0].header_names


async def test_no_more_calls_are_open_than_the_policy_allows() -> None:
    """max_parallel_requests; the others wait their turn, and one that waits too long is told so."""
    async with FakeModels(lambda _: FakeAnswer(value={"label": "login"})) as fake:
        fake.hold()
        one = model(fake.url, limits=Limits(max_parallel_requests=3))
        async with opened(one) as pool:
            calls = [asyncio.create_task(pool.call(call(one, text=f"t{number}"))) for number in range(10)]
            await fake.journal.wait_for(lambda entries: len(entries) >= 3)
            late = await pool.call(call(one, seconds=0.05))
            assert isinstance(late, Failure)
            assert (late.kind, late.detail) == (FailureKind.OVERLOADED, "no_permit")
            assert len(fake.journal.entries) == 3
            fake.release()
            assert all(isinstance(found, Reply) for found in await asyncio.gather(*calls))
            assert fake.peak == 3


async def test_connections_are_kept_and_a_cancelled_call_closes_only_its_own() -> None:
    """One connection serves calls in turn; a call given up never leaves its answer to the next."""
    async with FakeModels(lambda request: FakeAnswer(text=request.text)) as fake:
        one = model(fake.url)
        async with opened(one) as pool:
            for number in range(5):
                found = await pool.call(call(one, text=f"t{number}"))
                assert isinstance(found, Reply)
                assert found.text == f"t{number}"
            assert fake.connections == 1
            fake.hold()
            given_up = asyncio.create_task(pool.call(call(one, text="given up")))
            await fake.journal.wait_for(lambda entries: len(entries) == 6)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            fake.release()
            after = await pool.call(call(one, text="after"))
            assert isinstance(after, Reply)
            assert after.text == "after"


async def test_every_finished_call_is_observed() -> None:
    """Model, seconds, and the failure if it was one."""
    seen: list[tuple[str, str | None]] = []
    async with FakeModels(
        lambda request: FakeFault("html") if request.text == "bad" else FakeAnswer(text="ok")
    ) as fake:
        one = model(fake.url)
        note = lambda name, _seconds, failure: seen.append((name, failure and failure.detail))  # noqa: E731 - one line
        async with opened(one, observe=note) as pool:
            await pool.call(call(one))
            await pool.call(call(one, text="bad"))
    assert seen == [("m", None), ("m", "not_json")]


async def test_a_model_or_endpoint_that_was_never_opened_is_a_bug() -> None:
    """The cascade asked for something that the policy does not hold."""
    one = model("http://127.0.0.1:1")
    async with opened(one) as pool:
        for wrong in (call(one, endpoint=1), call(model("http://h", name="other"))):
            with pytest.raises(Bug):
                await pool.call(wrong)


async def test_a_model_that_nothing_serves_is_an_input_error_at_the_start() -> None:
    """With the mend, before any job is taken."""
    for wrong in (
        Model(name="m", provider="my-own"),
        Model(name="m", api=Api.RECORDED),
        Model(name="m", base_url="ftp://h"),
        Model(name="m", base_url="http://h:port"),
    ):
        with pytest.raises(InputError, match="Mend"):
            Pool.open({"m": wrong}, CLOCK, tokens.default(), environ={})


async def test_a_live_check_reports_what_one_call_shows() -> None:
    """Key, JSON mode, logprobs and limits; and the failure where there is one."""
    told = FakeAnswer(value={"label": "yes"}, headers={"x-ratelimit-limit-requests": "60"})
    async with FakeModels(lambda _: told, keys=frozenset({"k"})) as fake:
        good = model(fake.url, name="good", api_key_env="GOOD")
        bad = model(fake.url, name="bad", api_key_env="BAD")
        pool = Pool.open({"good": good, "bad": bad}, CLOCK, tokens.default(), environ={"GOOD": "k", "BAD": "x"})
        (right,), (wrong,) = await pool.live_check("good"), await pool.live_check("bad")
        await pool.close()
    assert (right.ok, right.key, right.json_mode, right.logprobs) == (True, True, True, True)
    assert right.rate_limits is not None
    assert right.rate_limits.requests is not None
    assert right.rate_limits.requests.limit == 60
    assert (wrong.ok, wrong.key, wrong.failure) == (False, False, "invalid_api_key")


async def test_a_live_check_finds_a_model_without_logprobs() -> None:
    """A 400 to the field is asked once more without it."""

    def script(request: Any) -> FakeAnswer | FakeFault:
        return FakeFault("status", 400) if request.logprobs else FakeAnswer(value={"label": "yes"})

    async with FakeModels(script) as fake:
        one = model(fake.url)
        async with opened(one) as pool:
            (report,) = await pool.live_check("m")
    assert (report.ok, report.logprobs) == (True, False)


async def test_recorded_and_local_models_answer_through_the_same_pool(tmp_path: Path) -> None:
    """In this process, with their own origin."""
    path = tmp_path / "answers.csv"
    path.write_text("text,small,large\nlost card,login,billing\n")
    models = [Model(name=name, api=Api.RECORDED, file=str(path)) for name in ("small", "large")]
    async with opened(*models) as pool:
        replies = [await pool.call(call(one)) for one in models]
    assert [isinstance(found, Reply) and found.text for found in replies] == [
        '{"label":"login"}',
        '{"label":"billing"}',
    ]
    assert {found.endpoint for found in replies} == {"recorded:answers.csv"}
