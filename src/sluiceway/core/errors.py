"""The two error roots: theirs and ours.

`InputError` is a fault in what somebody handed us (a record, a policy, a file): it is reported to them
and never stops a worker. `Bug` is a fault of ours: it stops the worker with the job unacked.
"""

from __future__ import annotations

from dataclasses import dataclass


class InputError(Exception):
    """The input is at fault. `reason` is a closed code for records and metrics; `detail` says where, and the mend."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Bug(Exception):  # noqa: N818  it says whose fault it is; that it is an error goes without saying
    """Sluiceway itself is at fault; the worker stops and nothing is settled."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a file a user wrote: where it is, what it is, and the mend."""

    file: str
    line: int
    field: str
    problem: str
    mend: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.field}: {self.problem}. Mend: {self.mend}"


class PolicyError(InputError):
    """A policy (or a file it names) cannot be used; `faults` holds every fault found, in file order."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("policy", "\n".join(str(fault) for fault in faults))
        self.faults = faults
