"""`python -m tests.sim --worlds N --seed S [--processes K] [--json] [--plant NAME]`: runs seeded worlds.

Prints how often each fault and transition happened, the story of what broke, and what is not simulated. Exit code 1
where a law broke, or where a full run saw something fewer than a hundred times.
"""

from __future__ import annotations

import argparse
import sys

import orjson

from tests.sim.plants import PLANTS
from tests.sim.runs import FULL, UNSIMULATED, Tally, run

_SHOWN = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="of the first world; the others follow it")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="run with this defect planted")
    parser.add_argument("--processes", type=int, help="one a core, unless said")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args()
    print(f"{asked.worlds} worlds from seed {asked.seed}", file=sys.stderr, flush=True)
    tally = run(range(asked.seed, asked.seed + asked.worlds), plant=asked.plant, processes=asked.processes)
    rare = tally.rare() if asked.worlds >= FULL else {}
    if asked.json:
        print(orjson.dumps(tally.facts() | {"seed": asked.seed, "rare": rare}).decode())
    else:
        _tell(tally, rare)
    return 1 if tally.failed or rare else 0


def _tell(tally: Tally, rare: dict[str, int]) -> None:
    print(tally.table())
    for told in tally.failed[:_SHOWN]:
        print(told)
    if len(tally.failed) > _SHOWN:
        print("broken too:", " ".join(str(told.seed) for told in tally.failed[_SHOWN:]))
    if rare:
        print("too rare:", ", ".join(f"{kind} {count}" for kind, count in rare.items()))
    print("not simulated:", *UNSIMULATED, sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
