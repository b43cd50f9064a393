"""The packing bench, run small: it counts calls and tokens, so what it demands holds whatever machine runs it."""

from __future__ import annotations

from tests.bench.packing import compare


async def test_ten_tickets_a_call_cut_input_tokens_by_half_and_every_bad_answer_is_redone_alone() -> None:
    """From policy to result on real sockets, a tenth of the packed answers bad: each ticket has its valid answer."""
    found = await compare(200, 0.1)
    assert [law for law, held in found["laws"].items() if not held] == []
    alone, _, bad = found["runs"]
    assert (alone["calls"], alone["packed"]) == (200, 0)
    assert 0 < bad["redone"] < 60
    assert bad["packed"] + bad["redone"] == 200
