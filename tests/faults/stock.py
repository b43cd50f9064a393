"""The baseline: the same work as a stock Faust agent, written as Faust's own guide has one write it.

    STOCK_BROKER=localhost:9092 STOCK_MODEL=http://localhost:8000 python -m tests.faults.stock worker -l warn

`concurrency=100` because a model call takes long. Nothing of Faust is changed or worked around but the session
timeout, which is as short as ours so that both notice a killed worker equally soon. It runs under Faust's own worker.
"""

# No `from __future__ import annotations`: Faust reads an agent's annotations.
import json
import os

import aiohttp
import faust

NAME = os.environ.get("STOCK_NAME", "stock")

app = faust.App(
    NAME,
    broker=f"kafka://{os.environ.get('STOCK_BROKER', 'localhost:9092')}",
    datadir=os.environ.get("STOCK_DATA", ".stock-data"),
    value_serializer="json",
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.5,
    web_enabled=False,
)
jobs = app.topic(f"{NAME}.jobs", value_serializer="json")
results = app.topic(f"{NAME}.results", value_serializer="json")


class Model:
    """One connection pool for the process, opened by the first call."""

    session: aiohttp.ClientSession | None = None

    async def classify(self, text: str) -> str:
        if self.session is None:
            self.session = aiohttp.ClientSession(os.environ["STOCK_MODEL"], connector=aiohttp.TCPConnector(limit=0))
        asked = {"model": "cheap-1", "messages": [{"role": "user", "content": text}]}
        async with self.session.post("/v1/chat/completions", json=asked) as answer:
            answer.raise_for_status()
            said = await answer.json()
        return str(said["choices"][0]["message"]["content"])


model = Model()


@app.agent(jobs, concurrency=100)
async def answer(stream: faust.StreamT[dict[str, str]]) -> None:
    async for job in stream:
        label = await model.classify(job["input"])
        await (await results.send(value={"id": job["id"], "label": label}))  # the second await is the broker's ack


def one(value: bytes) -> str:
    """The job id of one record of the results topic."""
    return str(json.loads(value)["id"])


if __name__ == "__main__":
    app.main()
