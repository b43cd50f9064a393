"""The policy: what loads, what it means, and what a user is told about every fault."""

# ruff: noqa: E501  a table of faults is read by its rows

from __future__ import annotations

import itertools
import random

import pytest
from tests.support.core import FRONTIER_PRICE, load, policy, written

from sluiceway.core.catalog import Api, Clearance, JsonMode, Level
from sluiceway.core.errors import Fault, PolicyError
from sluiceway.core.task import Kind, ScoreKind

SMALLEST = """\
models:
  cheap:    {provider: openai, model: gpt-5.4-mini, params: {max_tokens: 50, reasoning_effort: none}}
  frontier: {provider: anthropic, model: claude-opus-4-8, params: {max_tokens: 200}}
tasks:
  ticket-triage: {ladder: [cheap, frontier], prompt: "Classify this ticket.", labels: [billing, login, refund, other],
                  gate: {score: label_logprob, threshold: 0.85}, budget: {usd_per_day: 50}}
"""

FULLER = """\
models:
  student: {api: local, file: student.skops}
  flash: {provider: openai, model: flash, params: {max_tokens: 100}, timeout: 20s}
  opus: {provider: anthropic, model: opus, params: {max_tokens: 400}}
tasks:
  ticket-triage:
    ladder: [{model: student, gate: {score: local, threshold: 0.9}}, flash, opus]
    bar: {agreement: 0.98, confidence: 0.95}
    gate: {score: label_logprob, threshold: 0.85}
    prompt: prompts/triage.j2
    output: schemas/triage.json
    agree_on: [category]
    start: [{when: "stakes >= high or tokens > 6000", at: opus}]
    review: {always: ["stakes >= critical"], sample: 0.005}
    on_failure: escalate
    clearance: internal
    deadline: 60s
    budget: {usd_per_job: 0.002, usd_per_day: 50}
"""
FILES = {
    "prompts/triage.j2": "Sort it.\n{{ input.body }}",
    "schemas/triage.json": '{"type": "object", "properties": {"category": {"enum": ["a", "b"]}, "note": {}}}',
}


def faults(text: str, files: dict[str, str] | None = None) -> list[Fault]:
    with pytest.raises(PolicyError) as caught:
        load(text, files)
    return caught.value.faults


# -- what loads ------------------------------------------------------------------------------------------------------


def test_the_smallest_policy_loads() -> None:
    """It fits on a screen; addresses, keys' names and prices are found."""
    made = load(SMALLEST)
    frontier = made.models["frontier"]
    assert (frontier.api, frontier.endpoints[0].base_url) == (Api.ANTHROPIC, "https://anthropic.test")
    assert frontier.price == FRONTIER_PRICE
    assert made.prices == {"cheap": "the test's list", "frontier": "the test's list"}
    assert made.tasks["ticket-triage"].labels == ("billing", "login", "refund", "other")
    assert made.warnings == ()


def test_the_fuller_task_reads_its_files() -> None:
    """Prompt and schema stand in files beside the policy; times and shares are as people write them."""
    text = FULLER.replace("ladder: [{model: student, gate: {score: local, threshold: 0.9}}, ", "ladder: [")
    task = load(text, FILES).tasks["ticket-triage"]
    assert (task.kind, task.prompt) == (Kind.EXTRACTION, FILES["prompts/triage.j2"])
    assert task.schema_["properties"]["category"] == {"enum": ["a", "b"]}
    assert (task.compared, task.deadline, task.review.sample) == (("category",), 60.0, 0.005)
    assert load(text, FILES).models["flash"].timeout == 20.0
    # A classifier gives labels only, which the file as DESIGN sketches it would get wrong.
    (fault,) = [one for one in faults(FULLER, FILES) if "classifier" in one.problem]
    assert fault.field == "tasks.ticket-triage.ladder.0"


def test_words_stay_words() -> None:
    """YAML's on, off, yes and no are labels and modes; keys are text whatever they look like."""
    text = written({"labels": None, "gate": {"score": "none"}}).replace(
        "prompt:", "labels: [yes, no, on, off]\n    prompt:"
    )
    text = text.replace("model: gpt-cheap", "model: gpt-cheap\n    json_mode: off").replace("triage:", "404:")
    made = load(text)
    assert made.tasks["404"].labels == ("yes", "no", "on", "off")
    assert made.models["cheap"].json_mode is JsonMode.OFF


@pytest.mark.parametrize(
    ("task", "name", "value"),
    [
        ({"deadline": "500ms"}, "deadline", 0.5),
        ({"deadline": "2h"}, "deadline", 7200.0),
        ({"deadline": 45}, "deadline", 45.0),
        ({"max_bytes": "2MiB"}, "max_bytes", 2 << 20),
        ({"max_bytes": "1.5kB"}, "max_bytes", 1500),
        ({"failed_share": "5%"}, "failed_share", 0.05),
        ({"stakes": "critical"}, "stakes", Level.CRITICAL),
        ({"clearance": "public"}, "clearance", Clearance.PUBLIC),
    ],
)
def test_quantities_are_written_as_people_write_them(task: dict[str, object], name: str, value: object) -> None:
    """60s, 2MiB, 0.5%, and words for levels."""
    assert getattr(policy(task).tasks["triage"], name) == value


def test_a_rule_may_stand_alone() -> None:
    """`always: stakes>=high` is short for a list of one."""
    assert policy({"review": {"always": "stakes>=high", "sample": "0.5%"}}).tasks["triage"].review.sample == 0.005


def test_the_reference_is_gated_only_by_its_own_rung() -> None:
    """The task's gate holds for the cheap rungs: somebody must settle."""
    task = policy().tasks["triage"]
    assert task.gate_of(task.ladder[0]) is task.gate
    assert task.gate_of(task.reference) is None
    own = policy({"ladder": ["cheap", {"model": "frontier", "gate": {"score": "none"}}]}).tasks["triage"]
    gate = own.gate_of(own.reference)
    assert gate is not None
    assert gate.score is ScoreKind.NONE


def test_merge_keys_share_what_is_common() -> None:
    """Anchors and `<<` work, and a value's line is its anchor's parent."""
    text = SMALLEST.replace("models:\n", "models:\n  base: &b {provider: openai, model: x, params: {max_tokens: 9}}\n")
    made = load(text.replace("  frontier:", "  more: {<<: *b, model: y}\n  frontier:"))
    assert (made.models["more"].provider, made.models["more"].model) == ("openai", "y")


# -- the digest ------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_what_decides() -> None:
    """Order and layout do not change it, nor where a key lies; a price, a prompt's text or a threshold does."""
    base = policy().digest
    assert load(written().replace("provider: openai", "provider:    openai  # a comment")).digest == base
    keyed = {"cheap": {"provider": "openai", "model": "gpt-cheap", "tier": "small", "params": {"max_tokens": 50}}}
    assert policy(models=keyed).digest == base
    keyed["cheap"]["api_key_env"] = "MY_KEY"
    assert policy(models=keyed).digest == base
    keyed["cheap"]["price"] = {"input_mtok": 9}
    assert policy(models=keyed).digest != base
    assert policy({"gate": {"score": "label_logprob", "threshold": 0.86}}).digest != base
    task = {"prompt": "p.txt"}
    first, second = (policy(task, files={"p.txt": text}).digest for text in ("Sort it.", "Sort it!"))
    assert first != second
    assert policy({"prompt": "Sort it."}).digest == first


# -- faults ----------------------------------------------------------------------------------------------------------

BASE = """\
models:
  cheap:
    provider: openai
    model: gpt-cheap
    params: {max_tokens: 50}
  mid:
    provider: openai
    model: gpt-mid
    params: {max_tokens: 50}
    timeout: 30s
  student:
    api: local
    file: student.skops
  frontier:
    provider: anthropic
    model: claude
    params: {max_tokens: 200}
    clearance: confidential
tasks:
  triage:
    ladder: [cheap, mid, frontier]
    prompt: "Classify this ticket."
    labels: [billing, login, refund, other]
    gate: {score: label_logprob, threshold: 0.85}
    deadline: 60s
    start: [{when: "tokens > 6000", at: frontier}]
    stakes: normal
    budget: {usd_per_day: 50}
  tagging:
    ladder: [cheap, frontier]
    prompt: "Tag this document."
    tags: [trade, oil]
    gate: {score: label_logprob, threshold: 0.7}
    review: {sample: 0.5%}
    on_failure: escalate
    max_bytes: 200kB
  facts:
    ladder: [mid, frontier]
    prompt: "Extract the facts. {{ input }}"
    output: {type: object, properties: {name: {type: string}}}
    gate: {score: answer_logprob, threshold: 0.5}
    agree_on: [name]
    clearance: internal
    retries: {tries: 2}
"""

# One fault each: what stands in BASE, what a user wrote instead, the field it is about, and a word of the mend.
FAULTS: dict[str, tuple[str, str, str, str]] = {
    "model not in the catalog": ("[cheap, mid, frontier]", "[cheap, mdi, frontier]", "tasks.triage.ladder.1", "did you mean mid?"),
    "unknown key of a task": ("    deadline: 60s", "    deadlin: 60s", "tasks.triage.deadlin", "did you mean deadline?"),
    "unknown key of a model": ("    timeout: 30s", "    flavour: red", "models.mid.flavour", "known here"),
    "misspelt required key": ("    tags: [trade, oil]\n", "    tag: [trade, oil]\n", "tasks.tagging.tag", "did you mean tags?"),
    "key in the file": ("    file: student.skops", "    file: student.skops\n    api_key: sk-1234", "models.student.api_key", "did you mean api_key"),
    "threshold": ("threshold: 0.7}", "threshold: 1.5}", "tasks.tagging.gate.threshold", "0 to 1"),
    "no threshold": ("{score: answer_logprob, threshold: 0.5}", "{score: answer_logprob}", "tasks.facts.gate", "threshold: 0.85"),
    "rule": ('when: "tokens > 6000"', 'when: "token > 6000"', "tasks.triage.start.0.when", "tokens > 6000"),
    "rule's rung": ("at: frontier}", "at: opus}", "tasks.triage.start.0.at", "cheap, mid, frontier"),
    "no price": ("model: gpt-cheap", "model: no-price", "models.cheap.price", "price: free"),
    "no max_tokens": ("    model: gpt-mid\n    params: {max_tokens: 50}", "    model: gpt-mid", "models.mid.params", "max_tokens: 200"),
    "params without max_tokens": ("params: {max_tokens: 200}", "params: {temperature: 0}", "models.frontier.params.max_tokens", "longest answer"),
    "misspelt max_tokens": ("params: {max_tokens: 200}", "params: {max_token: 200}", "models.frontier.params.max_token", "did you mean max_tokens?"),
    "negative max_tokens": ("params: {max_tokens: 200}", "params: {max_tokens: -1}", "models.frontier.params.max_tokens", "longest answer"),
    "key twice": ("    stakes: normal", "    stakes: normal\n    stakes: high", "tasks.triage.stakes", "keep one"),
    "clearance word": ("    clearance: internal", "    clearance: secret", "tasks.facts.clearance", "public, internal, confidential or restricted"),
    "model's clearance word": ("    clearance: confidential", "    clearance: Public", "models.frontier.clearance", "public, internal"),
    "level word": ("    stakes: normal", "    stakes: huge", "tasks.triage.stakes", "low, normal, high or critical"),
    "task nobody may see": ("    clearance: internal", "    clearance: restricted", "tasks.facts.clearance", "clearance"),
    "no gate": ("    gate: {score: label_logprob, threshold: 0.7}\n", "", "tasks.tagging.gate", "add gate:"),
    "gate without score": ("    gate: {score: label_logprob, threshold: 0.7}\n", "    gate: {threshold: 0.7}\n", "tasks.tagging.gate.score", "label_logprob"),
    "unknown score": ("{score: answer_logprob, ", "{score: entropy, ", "tasks.facts.gate.score", "label_logprob"),
    "gate the model can't feed": ("    ladder: [mid, frontier]", "    ladder: [frontier, mid]", "tasks.facts.gate", "votes"),
    "local gate without a local model": ("{score: label_logprob, threshold: 0.85}", "{score: local, threshold: 0.85}", "tasks.triage.gate", "api: local"),
    "local gate with another model": ("{score: label_logprob, threshold: 0.85}", "{score: local, threshold: 0.85, model: cheap}", "tasks.triage.gate.model", "api: local"),
    "one label": ("    labels: [billing, login, refund, other]", "    labels: [billing]", "tasks.triage.labels", "[billing, login, other]"),
    "labels that are numbers": ("    labels: [billing, login, refund, other]", "    labels: [billing, 7, other]", "tasks.triage.labels.1", "quotes"),
    "a label twice": ("    labels: [billing, login, refund, other]", "    labels: [billing, login, billing]", "tasks.triage.labels", "once"),
    "no answer": ("    tags: [trade, oil]\n", "", "tasks.tagging", "labels, tags, output, text"),
    "two answers": ("    tags: [trade, oil]\n", "    tags: [trade, oil]\n    text: 80\n", "tasks.tagging.text", "exactly one"),
    "no prompt": ('    prompt: "Tag this document."\n', "", "tasks.tagging.prompt", "add prompt:"),
    "no ladder": ("    ladder: [mid, frontier]\n", "", "tasks.facts.ladder", "cheapest first"),
    "template syntax": ("{{ input }}", "{{ input ", "tasks.facts.prompt", "Jinja2"),
    "template variable": ("{{ input }}", "{{ ticket }}", "tasks.facts.prompt", "input"),
    "missing prompt file": ('"Tag this document."', "prompts/tag.j2", "tasks.tagging.prompt", "path"),
    "missing schema file": ("{type: object, properties: {name: {type: string}}}", "facts.json", "tasks.facts.output", "path"),
    "bad schema": ("{name: {type: string}}", "{name: {type: txt}}", "tasks.facts.output", "draft 2020-12"),
    "agree_on": ("agree_on: [name]", "agree_on: [nam]", "tasks.facts.agree_on", "name"),
    "duration": ("    deadline: 60s", "    deadline: a minute", "tasks.triage.deadline", "60s"),
    "model's duration": ("    timeout: 30s", "    timeout: soon", "models.mid.timeout", "30s"),
    "size": ("    max_bytes: 200kB", "    max_bytes: plenty", "tasks.tagging.max_bytes", "200kB"),
    "share": ("sample: 0.5%", "sample: often", "tasks.tagging.review.sample", "0.5%"),
    "choice": ("    on_failure: escalate", "    on_failure: retry", "tasks.tagging.on_failure", "escalate, wait or review"),
    "budget": ("usd_per_day: 50", "usd_per_day: 50 dollars", "tasks.triage.budget.usd_per_day", "US dollars"),
    "endless budget": ("usd_per_day: 50", "usd_per_day: inf", "tasks.triage.budget.usd_per_day", "US dollars"),
    "time zone": ("budget: {usd_per_day: 50}", "budget: {usd_per_day: 50, timezone: Mars}", "tasks.triage.budget.timezone", "Europe/Berlin"),
    "tries": ("retries: {tries: 2}", "retries: {tries: 99}", "tasks.facts.retries.tries", "1 to 10"),
    "unknown provider": ("    provider: anthropic", "    provider: athropic\n    price: free", "models.frontier.base_url", "https://"),
    "no file": ("    file: student.skops\n", "", "models.student.file", "add file:"),
    "api word": ("    api: local", "    api: lokal\n    base_url: https://x.test\n    model: m\n    price: free\n    params: {max_tokens: 5}", "models.student.api", "local"),
    "answer as long as the window": ("params: {max_tokens: 200}", "params: {max_tokens: 200000}", "models.frontier.params.max_tokens", "lower max_tokens"),
    "a model that is no mapping": ("  student:\n    api: local\n    file: student.skops\n", "  student: skops\n", "models.student", "mapping"),
    "a binary": ("    stakes: normal", "    stakes: !!binary aGk=", "tasks.triage.stakes", "text, a number"),
}  # fmt: skip


def broken(*names: str) -> str:
    text = BASE
    for name in names:
        right, wrong, _, _ = FAULTS[name]
        assert text.count(right) == 1, name
        text = text.replace(right, wrong)
    return text


# What is told at another line than the one that was changed: the parent's, or the gate's.
ELSEWHERE = {"no max_tokens", "params without max_tokens", "no price", "unknown provider", "gate the model can't feed"}
# What can't be held against each other: one takes away what the other is about.
APART = [
    {"no ladder", "rule's rung", "gate the model can't feed", "no threshold", "unknown score", "task nobody may see"},
    {"no file", "api word", "a model that is no mapping"},
    {"two answers", "no answer", "misspelt required key"},
    {"model not in the catalog", "no gate", "gate the model can't feed", "rule's rung", "local gate without a local model",
     "local gate with another model"},
    {"no price", "unknown provider"},
    {"missing schema file", "agree_on"},
]  # fmt: skip


def where(text: str, name: str) -> range:
    """The lines that a fault may be told at: those the user wrote, or the part it is missing from."""
    _, wrong, field, _ = FAULTS[name]
    lines = text.splitlines()
    if wrong:
        first = text[: text.index(wrong)].count("\n") + 1
        return range(first, first + wrong.strip("\n").count("\n") + 1)
    holder = field.split(".")[1]
    return range(lines.index(f"  {holder}:") + 1, len(lines) + 1)


def test_the_base_of_all_faults_is_sound() -> None:
    """Else the tests below would show nothing."""
    assert load(BASE).digest


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_one_message_with_line_field_and_mend(name: str) -> None:
    """The line where it was written, the field by its path, and words that mend it."""
    text = broken(name)
    (fault,) = faults(text)
    _, _, field, mend = FAULTS[name]
    assert fault.field == field, fault
    assert mend in f"{fault.problem} {fault.mend}", fault
    if name not in ELSEWHERE:
        assert fault.line in where(text, name), fault
    assert 1 <= fault.line <= len(text.splitlines())
    assert str(fault).startswith(f"policy.yaml:{fault.line}: {fault.field}: ")


def _compatible(names: tuple[str, ...]) -> bool:
    """No two of them change the same place, or take away what another is about."""
    text = BASE
    for name in names:
        if text.count(FAULTS[name][0]) != 1:
            return False
        text = text.replace(FAULTS[name][0], FAULTS[name][1])
    parts = [FAULTS[name][2] for name in names]
    return all(
        not (first == second or first.startswith(f"{second}.")) for first, second in itertools.permutations(parts, 2)
    )


def test_any_five_faults_get_five_messages() -> None:
    """Of both levels, mixed: what does not validate hides nothing of what does not make sense."""
    seed = 20261122
    print(f"seed {seed}")
    dice = random.Random(seed)
    tried = 0
    while tried < 120:
        names = tuple(dice.sample(sorted(FAULTS), 5))
        if not _compatible(names) or any(len(group & set(names)) > 1 for group in APART):
            continue
        tried += 1
        found = faults(broken(*names))
        wanted = {FAULTS[name][2] for name in names}
        assert {fault.field for fault in found} == wanted, names
        assert len(found) == 5, names
        assert [fault.line for fault in found] == sorted(fault.line for fault in found)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1),
        ("[]", 1),
        ("just text", 1),
        ("models: {a: [}\n", 1),
        ("models:\n  a: 1\n b: 2\n", 3),
        ("models:\n\tcheap: {}\n", 2),
        ("a: \x00", 1),
        ("a: &x [*x]\n", 1),
        ("models: {a: *nowhere}\n", 1),
        ("? [a, b]\n: c\n", 1),
        ("models: !!python/object:os.system {}\n", 1),
        ("models: !!int word\n", 1),
        ("a: " + "[" * 3000, 1),
        ("models: 5\ntasks: []\n", 1),
        ("models:\n", 1),
        ("tasks: {}\n", 1),
    ],
)
def test_what_is_no_policy_at_all_says_so(text: str, line: int) -> None:
    """Never a traceback, always a line that is in the file."""
    found = faults(text)
    assert found[0].line == line
    assert all(fault.mend for fault in found)


def test_aliases_that_multiply_are_stopped() -> None:
    """Ten lines can't fill the memory."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "too large" in faults("\n".join(lines))[0].problem


def test_a_warning_is_no_fault() -> None:
    """What works but is probably not meant is said, and the policy loads."""
    made = policy({"ladder": ["frontier", "cheap"], "gate": {"score": "none"}})
    assert len(made.warnings) == 2
    cheap = {"provider": "openai", "model": "m", "params": {"max_tokens": 9}, "clearance": "public"}
    low = policy(models={"cheap": cheap})
    assert "never used" in low.warnings[0]
    cold = {"provider": "openai", "model": "m", "params": {"max_tokens": 9, "temperature": 0}}
    same = policy({"gate": {"score": "votes", "threshold": 0.6}}, {"cheap": cold})
    assert "never differ" in same.warnings[0]
