"""Any file is a policy or a PolicyError: faults with a line in the file and a mend, and nothing else."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.core import Letters, load

from sluiceway.core.errors import PolicyError
from sluiceway.core.plan import compile_plans

SOUND = """\
models:
  cheap: &base {provider: openai, model: gpt-cheap, params: {max_tokens: 50}, timeout: 30s, price: {input_mtok: 0.15}}
  mid: {<<: *base, model: gpt-mid, endpoints: [{base_url: "https://a.test", weight: 2}], extra_body: {top_k: 5}}
  student: {api: local, file: student.skops}
  frontier: {provider: anthropic, model: claude, params: {max_tokens: 200}, clearance: confidential}
tasks:
  triage:
    ladder: [cheap, {model: mid, input_tokens: 500, gate: {score: votes, threshold: 0.6, votes: 3}}, frontier]
    prompt: "Classify this ticket. {{ labels }}"
    labels: [billing, login, no, other]
    gate: {score: local, threshold: 0.85, model: student}
    start: [{when: "stakes >= high or tokens > 6000", at: frontier}]
    review: {always: ["stakes >= critical"], sample: 0.5%}
    deadline: 60s
    budget: {usd_per_job: 0.002, usd_per_day: 50, timezone: Europe/Berlin}
    source: {topic: foreign, id: /id, input: {text: /body}}
  facts:
    ladder: [mid, frontier]
    prompt: "Extract. {{ input }}"
    output: {type: object, properties: {name: {type: [string, "null"]}}, required: [name]}
    gate: {score: answer_logprob, threshold: 0.5}
"""
LINES = SOUND.splitlines()
ODD = st.sampled_from(
    [
        *("~", "null", "true", "5", "-1", "1.5", "1e400", "9" * 30, "'x'", "[]", "{}", "[[]]", "{a: {b: []}}"),
        *("&a [*a]", "*base", "!!binary aGk=", "!!set {a}", "2026-01-01", "0x10", ".inf", "nan", "\ud800", "\x00"),
        *("é", "{{", "- x", "models:", "tasks:", "cheap", "frontier", "<<: *base", "? [a]", '"', "%", "@", "\t"),
        *("60s", "5%", "text: 5", "local", "recorded", "anthropic", "votes", "label_logprob", "none", "tokens >"),
        *("x.j2", "x.json", "||", "> |"),
    ]
)
WAYS = st.sampled_from(["word", "word", "word", "value", "value", "drop", "double", "swap", "indent", "cut"])


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """The sound policy with a few words or lines changed, moved, doubled or gone."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(WAYS):
            case "word":
                words = line.split(" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(ODD)
                lines[at] = " ".join(words)
            case "value" if ":" in line:
                lines[at] = f"{line[: line.index(':')]}: {draw(ODD)}"
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(at, line)
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], line
            case "indent":
                lines[at] = draw(st.sampled_from(["", " ", "  ", "    ", "      "])) + line.lstrip()
            case _:
                lines[at] = line[: draw(st.integers(0, len(line)))]
    return "\n".join(lines)


def test_the_sound_policy_is_sound() -> None:
    """Else the mutations would show little."""
    assert load(SOUND).digest


@given(text=st.one_of(mutated(), mutated(), mutated(), st.text(st.characters(), max_size=80)))
@settings(max_examples=700, deadline=None)
def test_any_text_is_a_policy_or_its_faults(text: str) -> None:
    """A policy that loads also runs; a fault stands in the file, is about something, and says what to do."""
    try:
        policy = load(text)
    except PolicyError as error:
        faults = error.faults
    else:
        assert len(policy.digest) == 32
        compile_plans(policy, Letters())
        return
    assert faults
    last = max(1, len(text.rstrip().splitlines()))
    for fault in faults:
        assert 1 <= fault.line <= last, fault
        assert fault.field, fault
        assert fault.problem, fault
        assert fault.mend, fault
    assert len(set(faults)) == len(faults)
