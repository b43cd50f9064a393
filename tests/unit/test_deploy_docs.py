"""The reference pages tell what the code has: every key with its default, every reason, every metric, no dead link."""

from __future__ import annotations

import re
import runpy
import shlex
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

from sluiceway.cli.app import app
from sluiceway.core import catalog, task
from sluiceway.core.outcome import DeadLetterReason, RefusalReason, ReviewReason
from sluiceway.core.policy import PolicySpec
from sluiceway.core.rule import FACTS
from sluiceway.core.sharing import Sharing
from sluiceway.core.trail import EscalationReason
from sluiceway.core.worth import Worth
from sluiceway.policyfile import read_policy
from sluiceway.telemetry.logs import Event
from sluiceway.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
POLICY = (REFERENCE / "policy.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

SECTIONS: dict[str, type[BaseModel]] = {
    "Top level": PolicySpec,
    "Sharing": Sharing,
    "A model": catalog.Model,
    "An endpoint": catalog.Endpoint,
    "Params": catalog.Params,
    "A price": catalog.Price,
    "Limits": catalog.Limits,
    "A task": task.Task,
    "A rung": task.Rung,
    "A gate": task.Gate,
    "A bar": task.Bar,
    "Review": task.ReviewRules,
    "Retries": task.Retries,
    "Packing": task.Packing,
    "A budget": task.Budget,
    "Worth": Worth,
    "A source": task.SourceSpec,
}
# Filled in when a policy is resolved; nobody writes them.
RESOLVED = {(catalog.Model, "name"), (catalog.Model, "content"), (task.Task, "name"), (task.Task, "shown")}
# Defaults that depend on something else: the page says on what, in words.
IN_WORDS = {
    (catalog.Model, "api"),
    (catalog.Model, "tier"),
    (catalog.Model, "context_window"),
    (catalog.Model, "params"),
    (catalog.Model, "json_mode"),
    (task.Task, "retries"),
    (task.Task, "worth"),
}


def _section(page: str, heading: str) -> str:
    """What stands below the heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", page, re.M | re.S)
    assert found is not None, heading
    return found[1]


def _rows(section: str) -> dict[str, str]:
    """Key -> default of the section's first table."""
    table = re.search(r"(?:^\|.*\n)+", section, re.M)
    assert table is not None
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]
    return {key.strip("` "): default for key, default, *_ in cells}


def _written(value: Any) -> str:
    """A default as the page writes it."""
    if isinstance(value, Enum):
        value = value.value if isinstance(value.value, str) else value.name.lower()
    if isinstance(value, Decimal):
        value = str(value)
    if isinstance(value, BaseModel) or value is None:
        return ""
    return f"`{value}`" if value != "" else '`""`'


@pytest.mark.parametrize("heading", SECTIONS)
def test_each_key_of_the_policy_is_on_its_page_and_no_other(heading: str) -> None:
    """A new key without a line of documentation fails here, and so does a line whose key is gone."""
    model = SECTIONS[heading]
    known = {name for name in model.model_fields if (model, name) not in RESOLVED}
    assert set(_rows(_section(POLICY, heading))) == known


@pytest.mark.parametrize("heading", SECTIONS)
def test_each_default_on_the_page_is_the_code_s(heading: str) -> None:
    """Required keys say so; values are the code's; `none` and words stand only where the code has no value."""
    model = SECTIONS[heading]
    for name, shown in _rows(_section(POLICY, heading)).items():
        field = model.model_fields[name]
        if field.is_required():
            assert shown == "required", name
        elif (model, name) not in IN_WORDS:
            value = _written(field.get_default(call_default_factory=True))
            assert shown == value if value not in ("", "`()`") else "`" not in shown or shown == value, name


def test_each_score_and_each_fact_of_a_rule_is_explained() -> None:
    """The closed sets of the policy are on its page, whole."""
    scores = "| score |" + _section(POLICY, "A gate").split("| score |", 1)[1]
    assert set(_rows(scores)) == set(task.ScoreKind)
    facts = _section(POLICY, "Rules")
    assert all(f"`{fact}`" in facts for fact in FACTS)


@pytest.mark.parametrize(
    ("heading", "reasons"),
    [
        ("A result", RefusalReason),
        ("A review", ReviewReason),
        ("A dead letter", DeadLetterReason),
        ("Escalation reasons", EscalationReason),
    ],
)
def test_each_reason_is_explained(heading: str, reasons: type[Enum]) -> None:
    """A reader of a record finds its reason on the page."""
    section = _section((REFERENCE / "records.md").read_text("utf-8"), heading)
    assert all(f"`{reason.value}`" in section for reason in reasons)


def test_each_metric_and_each_log_event_is_on_the_page_with_its_labels() -> None:
    """The page is the list of what telemetry declares."""
    page = (REFERENCE / "metrics.md").read_text("utf-8")
    rows = _rows(_section(page, "Metrics"))
    declared = {}
    for metric in vars(Metrics()).values():
        if (labels := getattr(metric, "_labelnames", None)) is not None:
            (described,) = metric.describe()
            declared[described.name + ("_total" if described.type == "counter" else "")] = ", ".join(labels)
    assert rows == declared
    assert all(f"`{event.value}`" in _section(page, "Logs") for event in Event)


def test_the_page_of_the_command_line_is_made_from_it() -> None:
    """A verb, an option or a default that changed has to be written again: python docs/make_cli.py."""
    made = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]()
    assert (REFERENCE / "cli.md").read_text("utf-8") == made, "run: python docs/make_cli.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_leads_nowhere(page: Path) -> None:
    """Each relative link opens a file that exists, at a heading that it has."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text("utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def _shown_commands() -> list[str]:
    """Every command line of ours that a page shows, comments and what follows a pipe cut off."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        shown = re.findall(r"^ {4}(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(sluiceway [a-z].*)$", text, re.M)
        shown += re.findall(r"`(sluiceway [a-z][^`]*)`", text)
        found += [re.split(r"\s+[#|>]|\s{2,}", line)[0].strip() for line in shown]
    return sorted(set(found))


@pytest.mark.parametrize("line", _shown_commands())
def test_each_command_line_that_a_page_shows_is_one_that_our_program_takes(line: str) -> None:
    """Whoever copies a line from a page gets no usage error."""
    command: Any = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        if not words:
            return  # the page speaks of the group itself
        command = command.commands[words.pop(0)]
    if words:
        command.make_context(command.name, words)


def test_the_readme_s_smallest_policy_is_a_policy(tmp_path: Path) -> None:
    """The example on the front page passes as it stands."""
    block = re.search(r"^    models:\n(?:    .*\n)+", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert block is not None
    file = tmp_path / "policy.yaml"
    file.write_text(block[0])
    assert list(read_policy(file).tasks) == ["ticket-triage"]
