"""A peer of the limits bench, in its own environment: `python _limited_peers.py CLIENT` reads one run from
stdin, once it has said `open`.

A run is `{"url", "seconds", "in_flight", "rpm", "tpm", "characters"}`; its answer one line: `{"jobs"}`. Both are as
they come, with the limit in the settings that they have for it. It stands alone: Sluiceway is not installed there.

litellm   a Router with one deployment; as many callers as ours has jobs in flight. A caller whose call has failed, its
          retries used up, is a second in asking for the next job.
curator   bespokelabs-curator's own LLM on its OpenAI backend, over a list of prompts that it can't get to the end of.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

_TEXT = "my card was lost abroad and the payment that i made last week still shows as pending please tell"
_PAUSE = 1.0  # seconds


def texts(characters: int, seed: int = 7) -> Iterator[str]:
    """As ours has them (`_limited_ours.py`)."""
    dice, known = random.Random(seed), _TEXT.split()
    for number in count():
        words = dice.choices(known, k=dice.randint(characters // 10, characters * 3 // 10))
        yield f"Classify this ticket. ticket {number}: {' '.join(words)}"


async def litellm_router(asked: dict[str, Any]) -> int:
    import litellm

    litellm.suppress_debug_info = True
    to = {
        "model": "openai/bench",
        "api_base": f"{asked['url']}/v1",
        "api_key": "bench",
        "rpm": asked["rpm"],
        "tpm": asked["tpm"],
    }
    router = litellm.Router(model_list=[{"model_name": "bench", "litellm_params": to}])
    backlog = texts(asked["characters"])
    ends = time.monotonic() + asked["seconds"]
    done = 0

    async def caller() -> None:
        nonlocal done
        for text in backlog:
            if time.monotonic() >= ends:
                return
            try:
                await router.acompletion(model="bench", messages=[{"role": "user", "content": text}], max_tokens=50)
                done += 1
            except Exception:  # noqa: BLE001  whatever a Router raises when it gives a call up
                await asyncio.sleep(_PAUSE)

    await asyncio.wait([asyncio.create_task(caller()) for _ in range(asked["in_flight"])], timeout=asked["seconds"])
    return done


def open_curator() -> None:
    """Imports it, so that nothing is fetched from anywhere."""
    os.environ["TELEMETRY_ENABLED"] = "false"
    os.environ["HOSTED_CURATOR_VIEWER"] = "0"
    os.environ["CURATOR_DISABLE_RICH_DISPLAY"] = "1"
    os.environ["OPENAI_API_KEY"] = "bench"
    os.environ["CURATOR_CACHE_DIR"] = tempfile.mkdtemp()
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    # tiktoken's encoding, which it would fetch from elsewhere: litellm brings it along.
    os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers")
    import bespokelabs.curator  # noqa: F401  it takes seconds


def curator_llm(asked: dict[str, Any]) -> int:
    from bespokelabs import curator

    llm = curator.LLM(
        model_name="gpt-4o-mini",  # a name whose price it knows
        backend="openai",
        backend_params={
            "base_url": f"{asked['url']}/v1",
            "max_requests_per_minute": asked["rpm"],
            "max_tokens_per_minute": asked["tpm"],
        },
        generation_params={"max_tokens": 50},
    )
    prompts = list(islice(texts(asked["characters"]), int(asked["rpm"] * asked["seconds"] / 60 * 2)))
    run = threading.Thread(target=llm, args=(prompts,), daemon=True)
    run.start()
    run.join(asked["seconds"])
    return -1  # it says nothing of them before its end


def main() -> None:
    out = os.fdopen(os.dup(1), "w")  # what a peer prints is not for the bench
    os.dup2(2, 1)
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched from anywhere
    if sys.argv[1] == "curator":
        open_curator()
    else:
        import litellm  # noqa: F401  it takes seconds
    print("open", file=out, flush=True)
    asked = json.loads(sys.stdin.readline())
    if sys.argv[1] == "curator":
        done = curator_llm(asked)
    else:
        import uvloop

        done = uvloop.run(litellm_router(asked))
    print(json.dumps({"jobs": done}), file=out, flush=True)
    os._exit(0)  # with whatever of theirs still runs


if __name__ == "__main__":
    main()
