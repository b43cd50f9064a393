"""How much of a limit is used, and how often it is passed: `python -m tests.bench.limits [--json] [--only NAME]`.

A model server in a process of its own allows so many requests and tokens a minute and answers 429 beyond them
(`_limited.py`); what is counted is its own journal. Our side is the real Runner, Cascade and Pool under a policy that
writes no limit, with a backlog that always has more; after `--minutes` the limit halves without notice. `workers-*` are
`sluiceway work` processes on Apache Kafka that share the limit through the control topic: one, then three, one of them
killed by -9, then one again. `windows-*` have a server with fixed minutes. The peers have the same server and backlog,
with the limit written in their settings; they come from the package index into environments of their own.

The shares are of whichever limit binds, over sliding 10 s, after the first 10 s. What workers ask for together is held
against all that the buckets, full at first, could give in any 10 s and in any minute. Our rows run beside each other,
as their rates are a few dozen calls a second; then each peer's alone, so that none waits for another's CPU.

Example: python -m tests.bench.limits --only requests-openai --minutes 0.5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.bench._limit_figures import STEP, WINDOW, Journal
from tests.bench._limited_workers import Steps, workers
from tests.bench._race import conditions
from tests.bench.endpoints import Line, cache, peers_python

RPM, TPM = 3_000, 300_000
CHARACTERS = {"requests": 120, "tokens": 1_500}  # of a text: below, and far above, the tokens that a request may have
IN_FLIGHT = 200
LEAST, MOST_REFUSED, LEAST_HALVED, BACK_WITHIN = 0.95, 0.01, 0.90, 30.0
CURATOR = ("bespokelabs-curator",)
_APART = round(WINDOW / STEP)
_OPENS = 1.0  # seconds that a client may take to make its first call


class Row(NamedTuple):
    """One run: `client` against a server whose limit of `binds` is met first."""

    client: str
    binds: str
    headers: str
    windows: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        return {"rpm": RPM, "tpm": TPM, "headers": self.headers, "windows": self.windows}


ROWS = {
    **{
        f"{binds}-{headers}": Row("ours", binds, headers)
        for binds in ("requests", "tokens")
        for headers in ("openai", "anthropic")
    },
    "workers-requests": Row("workers", "requests", "openai"),
    "workers-tokens": Row("workers", "tokens", "anthropic"),
    "windows-requests": Row("ours", "requests", "openai", windows=True),
    "windows-tokens": Row("ours", "tokens", "anthropic", windows=True),
    **{f"{peer}-{binds}": Row(peer, binds, "openai") for peer in ("litellm", "curator") for binds in CHARACTERS},
    **{f"{peer}-windows": Row(peer, "requests", "openai", windows=True) for peer in ("litellm", "curator")},
}


def post(url: str, path: str, body: Mapping[str, Any]) -> Any:
    """A control request to the server."""
    reply = httpx.post(f"{url}{path}", json=dict(body), timeout=30)
    return reply.raise_for_status().json()


def curator_python() -> Path:
    """The interpreter of Curator's environment, made where it is missing: it pins its own litellm."""
    python = cache() / "curator" / "bin" / "python"
    if not python.exists():
        venv.create(cache() / "curator", with_pip=True)
    if subprocess.run([python, "-c", "import bespokelabs.curator"], capture_output=True).returncode:
        print("installing Curator ...", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *CURATOR], check=True)
    return python


CLIENTS: dict[str, Callable[[], Line]] = {
    "ours": lambda: Line(sys.executable, "-m", "tests.bench._limited_ours"),
    "litellm": lambda: Line(peers_python(), "tests/bench/_limited_peers.py", "litellm"),
    "curator": lambda: Line(curator_python(), "tests/bench/_limited_peers.py", "curator"),
}
PEERS = {"litellm": peers_python, "curator": curator_python}


def run(name: str, minutes: float, after: float) -> dict[str, Any]:
    """The row's figures. Of a server with buckets the limit halves after `minutes`, for `after` seconds more."""
    row = ROWS[name]
    halves = not row.windows and row.client != "workers"
    steps: Steps = []
    told: dict[str, Any] = {}
    with Line(sys.executable, "-m", "tests.bench._limited", json.dumps(row.settings)) as server:
        url = f"http://127.0.0.1:{int(server.read())}"
        if row.client == "workers":
            with tempfile.TemporaryDirectory() as folder:
                steps = workers(url, row.headers, CHARACTERS[row.binds], RPM, minutes, Path(folder))
        else:
            asked = {
                "url": url, "headers": row.headers, "in_flight": IN_FLIGHT, "rpm": RPM, "tpm": TPM,
                "characters": CHARACTERS[row.binds], "seconds": 60 * minutes + (_OPENS + after if halves else 0.0),
            }  # fmt: skip
            half = threading.Timer(60 * minutes + _OPENS, post, (url, "/limits", {"rpm": RPM / 2, "tpm": TPM / 2}))
            with CLIENTS[row.client]() as client:
                client.read()  # all of it is imported
                if halves:
                    half.start()
                told = client.ask(asked)
        journal = Journal(post(url, "/journal", {}))
    if steps:
        told["steps"] = [[round(at - journal.began, 1), what] for at, what in steps]
    return {"name": name, "client": row.client, **figures(journal, row, steps), **told}


def figures(journal: Journal, row: Row, steps: Steps) -> dict[str, Any]:
    """What the journal says, and which laws it keeps; peers are held to none."""
    first = journal.limits[0]
    end = steps[-1][0] if steps else journal.ended
    if len(journal.limits) > 1:
        end = journal.limits[1].at
    shares = [share for _, share in journal.shares(first, journal.began + WINDOW, end)]
    found: dict[str, Any] = {
        "requests": len(journal.requests),
        "seconds": end - journal.began,
        "mean": statistics.mean(shares) if shares else 0.0,
        "lowest": min(shares, default=0.0),
        "each_10_s": [round(share, 3) for _, share in journal.shares(first, journal.began, end)][::_APART],
        "refused": journal.refused(0.0, end),
        "most_asked": {f"{seconds:g} s": journal.most_asked(first, 0.0, end, seconds) for seconds in (10.0, 60.0)},
        "most_admitted": journal.most_admitted(10.0) if not row.windows else None,
    }
    laws = {f"under {MOST_REFUSED:.0%} refused": found["refused"] < MOST_REFUSED}
    if row.client == "workers":
        laws[f"{LEAST:.0%} used"] = found["mean"] >= LEAST
        laws["the sum never above the limit"] = max(found["most_asked"].values()) <= 1.0
    elif not row.windows:
        laws[f"{LEAST:.0%} used in any 10 s"] = found["lowest"] >= LEAST
    if len(journal.limits) > 1:
        back = journal.back_within(LEAST_HALVED)
        found["back_s"] = back if isfinite(back) else None
        found["refused_after"] = journal.refused(end, journal.ended)
        laws[f"{LEAST_HALVED:.0%} of the half within {BACK_WITHIN:.0f} s"] = back <= BACK_WITHIN
    if row.client in ("ours", "workers"):
        found["laws"], found["held"] = laws, all(laws.values())
    return found


def show(results: list[dict[str, Any]], before: Mapping[str, Any]) -> None:
    print(f"\n{RPM:,} requests and {TPM:,} tokens a minute; {before['cores']} cores, load {before['load']}")
    print(f"  {'':20}{'used':>8}{'lowest':>9}{'refused':>10}{'back after':>12}{'requests':>10}{'stalled':>10}")
    for each in results:
        back = "" if "back_s" not in each else "never" if each["back_s"] is None else f"{each['back_s']:.1f} s"
        held = "" if "held" not in each else "   held" if each["held"] else "   NOT held: " + ", ".join(
            law for law, kept in each["laws"].items() if not kept
        )  # fmt: skip
        stalled = f"{each['stalled']:.2f} s" if "stalled" in each else ""
        print(f"  {each['name']:20}{each['mean']:>8.1%}{each['lowest']:>9.1%}{each['refused']:>10.2%}{back:>12}"
              f"{each['requests']:>10,}{stalled:>10}{held}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=list(ROWS), action="append")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--after", type=float, default=60.0, help="seconds after the limit has halved")
    given = parser.parse_args()
    before = conditions()
    names = given.only or list(ROWS)
    for peer, install in PEERS.items():
        if any(ROWS[name].client == peer for name in names):
            install()
    peers = [name for name in names if ROWS[name].client in PEERS]
    ours = [name for name in names if name not in peers]
    with ThreadPoolExecutor(max(1, len(ours))) as pool:
        results = list(pool.map(lambda name: run(name, given.minutes, given.after), ours))
    results += [run(name, given.minutes, given.after) for name in peers]
    if given.json:
        print(json.dumps({"rows": results, "rpm": RPM, "tpm": TPM, "minutes": given.minutes, "conditions": before}))
    else:
        show(results, before)
    sys.exit(0 if all(each.get("held", True) for each in results) else 1)


if __name__ == "__main__":
    main()
