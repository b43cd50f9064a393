"""Route + call + gate against today's clients: `python -m tests.bench.endpoints [--json] [--only NAME] [--rounds N]`.

One local server in a process of its own, each client in another; the peers come from the package index into an
environment of their own. Clients take turns within each round; medians and ratios come from the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
PEERS = ("litellm", "httpx-aiohttp", "aiohttp")
PACKAGES = ("litellm", "httpx", "httpx-aiohttp", "aiohttp", "uvloop", "orjson")
CASES = {"instant": (0.0, 64), "50ms": (0.05, 500)}  # server's delay in seconds, calls in flight


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluiceway-bench"


def peers_python() -> Path:
    """The interpreter of the peers' environment, made where it is missing."""
    python = cache() / "peers" / "bin" / "python"
    if not python.exists():
        venv.create(cache() / "peers", with_pip=True)
    missing = subprocess.run([python, "-c", "import litellm, httpx_aiohttp, aiohttp, uvloop"], capture_output=True)
    if missing.returncode:
        print("installing the peers ...", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
    return python


class Line:
    """A child process that answers one line for each line it is given."""

    def __init__(self, *command: str | Path) -> None:
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate(timeout=30)

    @property
    def pid(self) -> int:
        return self._child.pid

    def read(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"{self._child.args} ended with {self._child.wait()}")
        return line

    def ask(self, what: dict[str, Any]) -> dict[str, float]:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(what) + "\n")
        self._child.stdin.flush()
        answer: dict[str, float] = json.loads(self.read())
        return answer


def _rate(run: dict[str, float]) -> float:
    return run["calls"] / run["seconds"]


def run_case(name: str, rounds: int, seconds: float, python: Path, bodies: Path) -> dict[str, Any]:
    delay, in_flight = CASES[name]
    clients = {peer: Line(python, "tests/bench/_peers.py", peer, bodies) for peer in PEERS}
    clients["sluiceway"] = Line(sys.executable, "-m", "tests.bench._ours")
    runs: dict[str, list[dict[str, float]]] = {client: [] for client in clients}
    with Line(sys.executable, "-m", "tests.bench._server", str(delay)) as server:
        url = f"http://127.0.0.1:{int(server.read())}"
        for number in range(rounds):
            order = list(clients) if number % 2 == 0 else list(reversed(clients))
            for client in order:
                # A call of litellm's takes seconds when hundreds are open: its window must hold some.
                lasts = seconds * 3 if client == "litellm" else seconds
                runs[client].append(clients[client].ask({"url": url, "seconds": lasts, "in_flight": in_flight}))
    for client in clients.values():
        client.__exit__()
    found: dict[str, Any] = {
        client: {
            "calls_per_s": statistics.median(map(_rate, each)),
            "lowest": min(map(_rate, each)),
            "highest": max(map(_rate, each)),
            "cpu_us": statistics.median(run["cpu_us"] for run in each),
            "p50_ms": 1000 * statistics.median(run["p50"] for run in each),
            "p99_ms": 1000 * statistics.median(run["p99"] for run in each),
        }
        for client, each in runs.items()
    }
    # Each round's clients ran under the same load of this machine: ratios are taken within it.
    ratios = {
        peer: statistics.median(
            _rate(mine) / max(_rate(theirs), 0.1) for mine, theirs in zip(runs["sluiceway"], runs[peer], strict=True)
        )
        for peer in PEERS
    }
    held = ratios["litellm"] >= 10 and ratios["httpx-aiohttp"] >= 1
    if delay:
        held = held and found["sluiceway"]["p99_ms"] < 3000 * delay
    return {"case": name, "in_flight": in_flight, "clients": found, "ratios": ratios, "held": held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=list(CASES), action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    given = parser.parse_args()
    python = peers_python()
    bodies = cache() / "bodies.jsonl"
    subprocess.run([sys.executable, "-m", "tests.bench._ours", "--bodies", bodies], check=True, cwd=ROOT)
    results = [run_case(name, given.rounds, given.seconds, python, bodies) for name in given.only or CASES]
    if given.json:
        print(json.dumps(results))
    else:
        for result in results:
            show(result)
    sys.exit(0 if all(result["held"] for result in results) else 1)


def show(result: dict[str, Any]) -> None:
    print(f"\n{result['case']} server, {result['in_flight']} in flight, one process")
    print(
        f"  {'':15}{'calls/s':>10}{'lowest':>10}{'highest':>10}{'cpu us':>9}{'p50 ms':>9}{'p99 ms':>9}   sluiceway is"
    )
    for client, each in result["clients"].items():
        ratio = result["ratios"].get(client)
        said = "" if ratio is None else f"   {ratio:.2f} x"
        print(
            f"  {client:15}{each['calls_per_s']:>10,.0f}{each['lowest']:>10,.0f}{each['highest']:>10,.0f}"
            f"{each['cpu_us']:>9,.0f}{each['p50_ms']:>9.1f}{each['p99_ms']:>9.1f}{said}"
        )
    print("  held" if result["held"] else "  NOT held: at least 10 x litellm and 1 x httpx-aiohttp, p99 under 3 delays")


if __name__ == "__main__":
    main()
