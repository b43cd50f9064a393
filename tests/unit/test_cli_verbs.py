"""The command line: every verb has its help, every fault its message and exit code, and no traceback ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from sluiceway import __version__
from sluiceway.cli import app as cli
from sluiceway.cli import main

VERBS = [
    "demo",
    "init",
    "check",
    "topics",
    "topics apply",
    "topics check",
    "publish",
    "work",
    "tail",
    "redrive",
    "resume",
    "replay",
]

BAD = """\
models:
  cheap: {provider: openai, model: gpt-5.4-mini, params: {max_token: 50}}
  frontier: {provider: anthropic, model: claude-opus-99, params: {max_tokens: 200}}
tasks:
  t:
    ladder: [cheep, frontier]
    prompt: prompts/missing.j2
    labels: [a, b]
    gate: {score: label_logprob, threshold: 1.5}
    start: [{when: "stakes >> high", at: frontier}]
"""


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    monkeypatch.setattr(sys, "argv", ["sluiceway", *arguments])
    monkeypatch.delenv("SLUICEWAY_BOOTSTRAP_SERVERS", raising=False)
    code: Any = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(code), out, err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    """--help is where most people read."""
    result = CliRunner().invoke(cli.app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert f"Example: sluiceway {verb.split()[0]}" in " ".join(result.output.split())


def test_the_module_is_the_command() -> None:
    """`python -m sluiceway --version`, without importing Kafka or a model's transport for it."""
    script = (
        "import sys; sys.argv = ['sluiceway', '--version']\n"
        "from sluiceway.cli import main\n"
        "try: main()\n"
        "finally: print([n for n in ('faust', 'aiokafka', 'httpx', 'tiktoken') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == [f"sluiceway {__version__}", "[]"]
    done = subprocess.run(
        [sys.executable, "-m", "sluiceway", "--version"], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == f"sluiceway {__version__}\n"


def test_an_interrupt_while_the_verbs_are_imported_is_one_like_any_other() -> None:
    """Exit code 130 and no traceback, however early Ctrl-C comes."""
    script = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'sluiceway.cli.work': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "from sluiceway.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_init_writes_what_check_accepts_and_never_over_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two commands of a new user."""
    monkeypatch.chdir(tmp_path)
    assert run(capsys, monkeypatch, "init")[0] == 0
    code, out, err = run(capsys, monkeypatch, "check", "policy.yaml")
    assert (code, err) == (0, "")
    assert "genai-prices" in out
    assert "openai/gpt-5.4-mini" in out
    Path("policy.yaml").write_text("mine")
    code, _, err = run(capsys, monkeypatch, "init")
    assert code == 2
    assert "--force" in err
    assert Path("policy.yaml").read_text() == "mine"
    assert run(capsys, monkeypatch, "init", "--force")[0] == 0
    assert run(capsys, monkeypatch, "check", "policy.yaml")[0] == 0


def test_a_policy_with_five_faults_gets_five_messages_each_with_line_and_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run shows them all, one line each, and exits 2; --json gives them to a script."""
    path = tmp_path / "bad.yaml"
    path.write_text(BAD)
    code, out, err = run(capsys, monkeypatch, "check", str(path))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    for number, word in ((2, "max_token"), (3, "price"), (6, "cheep"), (7, "prompt"), (9, "threshold"), (10, "when")):
        assert any(line.startswith(f"{path}:{number}: ") and word in line and "Mend: " in line for line in lines), word
    code, out, _ = run(capsys, monkeypatch, "check", "--json", str(path))
    assert code == 2
    assert [fault["line"] for fault in orjson.loads(out)["faults"]] == sorted(
        int(line.removeprefix(f"{path}:").partition(":")[0]) for line in lines
    )


def test_check_says_of_a_bar_that_it_is_not_proved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the table and in JSON; prices with their origin, and the key's place but never a key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    path = tmp_path / "p.yaml"
    run(capsys, monkeypatch, "init", str(path))
    path.write_text(path.read_text() + "    bar: {agreement: 0.98, confidence: 0.95}\n")
    code, out, _ = run(capsys, monkeypatch, "check", str(path))
    assert code == 0
    assert "declared, not yet proved" in out
    code, told, _ = run(capsys, monkeypatch, "check", "--json", str(path))
    tree = orjson.loads(told)
    assert tree["tasks"][0]["bar"]["state"] == "declared, not yet proved"
    assert tree["models"][0]["key"] == "OPENAI_API_KEY (set)"
    assert tree["models"][0]["price"]["input_mtok"] > 0
    assert "sk-canary" not in out + told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "nowhere.yaml"], "nowhere.yaml"),
        (["bogus"], "No such command"),
        (["replay", "nowhere.csv"], "Missing option"),
        (["topics", "check"], "no Kafka cluster given"),
        (["topics", "check", "-b", "x:1", "-X", "sasl.mechanizm=PLAIN"], "did you mean sasl.mechanism"),
        (["tail", "-b", "embedded"], "embedded broker lives inside"),
        (["tail", "-b", "x:1", "--from", "yesterday"], "earliest, latest, or a time"),
        (["tail", "answers", "-b", "x:1"], "dead-letters"),
        (["publish", "nowhere.csv", "--task", "t", "-b", "x:1"], "nowhere.csv"),
        (["work", "--policy", "nowhere.yaml", "--role", "boss", "-b", "x:1"], "escalations"),
        (["resume", "--partition", "3", "-b", "x:1"], "--partition needs a topic"),
        (["resume", "--all", "--group", "g", "-b", "x:1"], "leave the other options out"),
        (["topics", "check", "-b", "127.0.0.1:1"], "no answer from 127.0.0.1:1"),
    ],
)
def test_wrong_use_is_told_and_exits_2(
    arguments: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What, where and the mend, on stderr."""
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = run(capsys, monkeypatch, *arguments)
    assert code == 2
    assert said in err
    assert out == "" or arguments[0] == "publish"
