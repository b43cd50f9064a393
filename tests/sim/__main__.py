"""`python -m tests.sim --worlds N --seed S [--plant NAME]`: runs seeded worlds, prints counts, and what broke."""

from __future__ import annotations

import argparse
import sys

from tests.sim.plants import PLANTS
from tests.sim.runs import run

_SHOWN = 3
_FULL = 5000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--worlds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1, help="of the first world; the others follow it")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="run with this defect planted")
    parser.add_argument("--processes", type=int, help="one a core, unless said")
    asked = parser.parse_args()
    tally = run(range(asked.seed, asked.seed + asked.worlds), plant=asked.plant, processes=asked.processes)
    print(tally.table())
    for told in tally.failed[:_SHOWN]:
        print(told)
    if len(tally.failed) > _SHOWN:
        print("broken too:", " ".join(str(told.seed) for told in tally.failed[_SHOWN:]))
    rare = tally.rare() if asked.worlds >= _FULL else {}
    if rare:
        print("too rare:", ", ".join(f"{kind} {count}" for kind, count in rare.items()))
    return 1 if tally.failed or rare else 0


if __name__ == "__main__":
    sys.exit(main())
