"""Open files: each call under way holds a connection, and many systems begin a process with room for 1,024 of them."""

from __future__ import annotations

from contextlib import suppress

from sluiceway.core.errors import InputError

_BESIDE = 256  # Kafka's connections, the store, the probes, and what Python itself holds


def make_room(connections: int, *, asked: bool) -> None:
    """Raises the process's own limit as far as `connections` need and the system allows, and never lowers it.

    Raises InputError where that is not enough for what somebody has `asked` for.
    """
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return
    wanted = connections + _BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    enough = hard == resource.RLIM_INFINITY or hard >= wanted
    if asked and not enough:
        raise InputError(
            "open_files",
            f"{connections} jobs in flight need {wanted} open files, and this system allows {hard}."
            " Mend: raise its limit (ulimit -Hn, LimitNOFILE=), or lower --in-flight",
        )
    with suppress(ValueError, OSError):  # some systems have lower limits than they say
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if enough else hard, hard))
