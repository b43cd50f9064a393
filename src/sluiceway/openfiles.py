"""Open files: each call under way holds a connection, and many systems begin a process with room for 1,024 of them."""

from __future__ import annotations

from sluiceway.core.errors import InputError

_BESIDE = 256  # Kafka's connections, the store, the probes, and what Python itself holds


def make_room(connections: int) -> None:
    """Raises the process's own limit as far as `connections` need, and never lowers it.

    Raises InputError where the system does not let it.
    """
    try:
        import resource
    except ImportError:  # on Windows, which has no such limit
        return
    wanted = connections + _BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):
        raise InputError(
            "open_files",
            f"{connections} jobs in flight need {wanted} open files, and this system allows {hard}."
            " Mend: raise its limit (ulimit -Hn, LimitNOFILE=), or lower --in-flight",
        ) from None
