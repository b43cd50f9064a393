"""Turns of replies: a few in each turn of the loop, in their order, and none is passed over."""

from __future__ import annotations

import asyncio
import random

from sluiceway.models.turn import A_TURN, Turn


async def test_replies_go_on_in_their_order_and_a_few_in_each_turn_of_the_loop() -> None:
    """Those that come late wait behind those that wait already."""
    turn, went, turns = Turn(), [], [0]
    loop = asyncio.get_running_loop()

    def count() -> None:
        turns[0] += 1
        if len(went) < 5 * A_TURN:
            loop.call_soon(count)

    async def reply(number: int) -> None:
        if turn.full():
            await turn.wait()
        went.append((number, turns[0]))
        if number == A_TURN:
            second.set()

    second = asyncio.Event()
    tasks = [loop.create_task(reply(number)) for number in range(4 * A_TURN)]
    loop.call_soon(count)
    await second.wait()
    tasks += [loop.create_task(reply(number)) for number in range(4 * A_TURN, 5 * A_TURN)]
    await asyncio.gather(*tasks)
    assert [number for number, _ in went] == list(range(5 * A_TURN))
    each = [sum(at == number for _, at in went) for number in range(turns[0] + 1)]
    assert max(each) == A_TURN


async def test_whoever_is_cancelled_costs_nobody_a_turn() -> None:
    """Any of those that wait may be; all others go on."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice, turn, went = random.Random(seed), Turn(), set()

    async def reply(number: int) -> None:
        if turn.full():
            await turn.wait()
        went.add(number)

    tasks = [asyncio.ensure_future(reply(number)) for number in range(6 * A_TURN)]
    await asyncio.sleep(0)
    gone = set(dice.sample(range(A_TURN, 6 * A_TURN), 3 * A_TURN))
    for number in gone:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert went == set(range(6 * A_TURN)) - gone
    assert not turn.full()
