"""Python's garbage collector, told what a process that runs many jobs at once is made of."""

from __future__ import annotations

import gc

# Objects of a job in flight, more than enough. They live as long as it does, and hardly any are a cycle: a collector
# that begins whenever a fraction of them is new goes through all of them in vain, for a fifth of the CPU.
_OF_A_JOB = 500


def expect(jobs: int) -> None:
    """Garbage is looked for in proportion to `jobs` in flight; what was imported stays."""
    gc.freeze()
    gc.set_threshold(_OF_A_JOB * jobs, 5, 10)


def keep() -> None:
    """What is here by now stays.

    The collector went through all of it anew for every few hundred jobs that were in flight together, which took a
    third of the CPU.
    """
    gc.collect()
    gc.freeze()
