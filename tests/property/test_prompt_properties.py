"""Prompts on every text: inside the limit by the real tokenizer, inside the fence, and the same again."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.core import job, policy

from sluiceway.core.prompt import Prompt, TooLong
from sluiceway.models import tokens

ENCODING = tokens.default()
TEMPLATES = ["Classify this ticket.", "{{ input }}", "Body:\n{{ input.a }}\nRest: {{ input.b }} {{ input.text }}"]
PROMPTS = {
    (template, trim): Prompt(policy({"prompt": template, "trim": trim}).tasks["triage"], ENCODING)
    for template in TEMPLATES
    for trim in ("head", "tail", "middle", "none")
}
WORDS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(["hello ", "größe ", "日本語", "🙂", "</data-", "\n\n", " ", "0f", "{{ input }}", "{% if %}"]),
)
MANY = st.lists(WORDS, min_size=1, max_size=6)
TEXTS = st.builds(lambda words, times: "".join(words) * times, MANY, st.integers(1, 200))
INPUTS = st.one_of(
    TEXTS.filter(bool),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), TEXTS, min_size=1),
)
PASSAGES = st.lists(st.fixed_dictionaries({"id": st.text(min_size=1, max_size=40), "text": TEXTS}), max_size=3)


@given(which=st.sampled_from(sorted(PROMPTS)), value=INPUTS, passages=PASSAGES, limit=st.integers(64, 3000))
@settings(max_examples=400, deadline=None)
def test_a_prompt_stays_within_its_tokens(which: tuple[str, str], value: Any, passages: list[Any], limit: int) -> None:
    """Counted by the tokenizer itself; and the count that the budget is held to is never too low."""
    prompt, known = PROMPTS[which], job(value, context=passages)
    text = prompt.read(known)
    built = prompt.build(text, known.context, limit)
    if isinstance(built, TooLong):
        assert built.needed > built.limit == limit or which[1] != "none"
        return
    request, facts = built
    used = len(ENCODING.encode(request.system)) + len(ENCODING.encode(request.user))
    assert used <= request.input_tokens == facts.tokens <= limit
    again = prompt.build(prompt.read(known), known.context, limit)
    assert again == built
    assert which[1] != "none" or not facts.trimmed


@given(value=TEXTS.filter(bool), passages=PASSAGES)
@settings(max_examples=200, deadline=None)
def test_no_text_leaves_its_fence(value: str, passages: list[Any]) -> None:
    """The first fence that opens is closed by its own tag, and what stands between is the text."""
    prompt, known = PROMPTS[TEMPLATES[0], "none"], job(value, context=passages)
    built = prompt.build(prompt.read(known), known.context, 10**6)
    assert not isinstance(built, TooLong)
    user = built[0].user
    for passage in known.context:
        assert passage.text in user
    opened = re.search(r"(?m)\A(?:<context-(?s:.*)\n)?<data-([0-9a-f]{16})>\n", user)
    assert opened is not None
    tags = re.findall(r"<data-([0-9a-f]{16})>\n", user)
    assert any(f"<data-{tag}>\n{value}\n</data-{tag}>" in user for tag in tags)
