"""Which cluster this is, as a job's origin names it."""

from __future__ import annotations

import contextlib

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from sluiceway.kafka.security import Connection


async def cluster_id(connection: Connection) -> str:
    """The cluster's id, or "kafka" where the broker does not tell one. Raises nothing: whoever connects next will."""
    admin = AIOKafkaAdminClient(**connection.client())
    try:
        await admin.start()
        return str((await admin.describe_cluster()).get("cluster_id") or "kafka")
    except (KafkaError, OSError, ValueError):
        return "kafka"
    finally:
        with contextlib.suppress(KafkaError, OSError):
            await admin.close()
