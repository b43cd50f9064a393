"""What deploy/ promises, read as a container engine would read it. None runs here, so every part is checked by parsing:
images, health checks, mounts, command lines, the Dockerfile's sources, and the metrics that rules and panels ask for.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.testing import CliRunner

from sluiceway import __version__
from sluiceway.cli.app import app
from sluiceway.policyfile import read_policy
from sluiceway.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"].startswith("sluiceway:"))
PINNED = re.compile(r"^[a-z0-9./-]+:v?\d+\.\d+\.\d+(-[a-z]+)*$")
KEYS = dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "DEEPSEEK_API_KEY", "FIREWORKS_API_KEY"), "sk-fake")


def _interpolated(text: str) -> str:
    """The text with compose's `${NAME:-default}` at its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def _binds(service: dict[str, Any]) -> dict[str, Path]:
    """Container path -> path in the checkout, of every bind mount."""
    mounts = (volume.split(":") for volume in service.get("volumes", ()))
    return {parts[1]: ROOT / parts[0] for parts in mounts if parts[0].startswith(".")}


def _command(service: dict[str, Any]) -> list[str]:
    """The service's command line with container paths replaced by the checkout's."""
    words = []
    for word in map(_interpolated, service["command"]):
        inside = next((place for place in _binds(service) if word.startswith(place + "/")), None)
        words.append(word if inside is None else str(_binds(service)[inside]) + word.removeprefix(inside))
    return words


def _parsed(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The verb that a command line names, and its options as they are parsed. Nothing is run."""
    command: Any = typer.main.get_command(app)
    verb: list[str] = []
    while hasattr(command, "commands"):
        verb.append(words[len(verb)])
        command = command.commands[verb[-1]]
    return verb, command.make_context(verb[-1], words[len(verb) :]).params


# -- compose -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICES)
def test_each_image_is_pinned_by_an_exact_version(name: str) -> None:
    """No `latest`, no floating minor version: the same file starts the same software next year."""
    assert PINNED.match(SERVICES[name]["image"]), SERVICES[name]["image"]


def test_our_image_carries_the_version_of_the_package() -> None:
    """The tag that compose builds is the version that the package says."""
    assert {SERVICES[name]["image"] for name in OURS} == {f"sluiceway:{__version__}"}


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_health_checked(name: str) -> None:
    """Every service says how it is known to be well, by a command with a time-out."""
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert len(check["test"]) > 1
    assert {"interval", "timeout", "retries"} <= set(check)


@pytest.mark.parametrize("name", SERVICES)
def test_each_mounted_path_is_in_the_checkout(name: str) -> None:
    """A bind mount of a missing path would be made by the engine as an empty directory, and the service would start."""
    for source in _binds(SERVICES[name]).values():
        assert source.exists(), source
    named = {volume.split(":")[0] for volume in SERVICES[name].get("volumes", ()) if not volume.startswith(".")}
    assert named <= set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", OURS)
def test_each_command_line_is_one_that_our_program_takes(name: str) -> None:
    """The verb exists, each option is its own, nothing that it demands is missing; and its --help works."""
    words = _command(SERVICES[name])
    verb, options = _parsed(words)
    assert CliRunner().invoke(app, [*verb, "--help"]).exit_code == 0
    for value in options.values():
        if isinstance(value, Path):
            assert value.exists(), value


@pytest.mark.parametrize("name", [name for name in OURS if "--policy" in SERVICES[name]["command"]])
def test_each_worker_runs_a_policy_that_passes_check(name: str) -> None:
    """`sluiceway check` accepts the policy that the service names."""
    words = _command(SERVICES[name])
    policy = words[words.index("--policy") + 1]
    result = CliRunner().invoke(app, ["check", policy], env=KEYS)
    assert result.exit_code == 0, result.output


def test_both_profiles_bring_one_worker_a_role_and_never_mix() -> None:
    """The recorded and the real workers share topics and groups, so no service of one starts with the other."""
    for profile in ("recorded", "real"):
        roles = [
            words[words.index("--role") + 1]
            for name in OURS
            if profile in SERVICES[name].get("profiles", ())
            if "--role" in (words := _command(SERVICES[name]))
        ]
        assert sorted(roles) == ["escalations", "jobs"]
    for service in SERVICES.values():
        assert len(service.get("profiles", ())) <= 1


def test_without_a_word_compose_runs_the_recorded_profile_with_no_key() -> None:
    """`docker compose up` alone: recorded answers, the demo's tickets published, no variable demanded."""
    assert "COMPOSE_PROFILES=recorded" in (ROOT / ".env").read_text("utf-8").splitlines()
    recorded = [name for name in OURS if "recorded" in SERVICES[name].get("profiles", ())]
    assert [name for name in recorded if SERVICES[name]["command"][0] == "publish"] == ["publisher"]
    policy = read_policy(DEPLOY / "policies" / "recorded.yaml")
    assert {model.api.value for model in policy.models.values()} <= {"recorded", "local"}
    assert not re.search(r"\$\{\w+:?\?", (ROOT / "docker-compose.yml").read_text("utf-8"))


def test_what_is_published_is_for_a_task_of_the_recorded_policy() -> None:
    """The publisher's task is one that the recorded workers know."""
    words = _command(SERVICES["publisher"])
    assert words[words.index("--task") + 1] in read_policy(DEPLOY / "policies" / "recorded.yaml").tasks


def test_the_recorded_policy_decides_as_the_demo_does() -> None:
    """Two files, one digest: compose and `sluiceway demo` give the same decisions."""
    demo = read_policy(ROOT / "src" / "sluiceway" / "demo" / "policy.yaml")
    assert read_policy(DEPLOY / "policies" / "recorded.yaml").digest == demo.digest


def test_a_worker_is_given_longer_to_stop_than_it_takes() -> None:
    """Compose kills after the grace period; a worker drains within its own stop budget."""
    from sluiceway.worker import STOP_BUDGET

    for name in OURS:
        if SERVICES[name]["command"][0] == "work":
            assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > STOP_BUDGET


def test_no_secret_stands_in_what_is_shipped() -> None:
    """Keys are named, never written: no value that looks like one in compose, .env, or the example of a key file."""
    for file in (ROOT / "docker-compose.yml", ROOT / ".env", DEPLOY / "keys.env.example", DEPLOY / "Dockerfile"):
        text = file.read_text("utf-8")
        assert not re.search(r"(?i)(api_key|secret|password|token)[ \t]*[=:][ \t]*['\"]?[A-Za-z0-9/+_-]{8,}", text), (
            file
        )
    assert "deploy/keys.env" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


# -- Dockerfile --------------------------------------------------------------------------------------------------------


def _instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


def _of(name: str) -> list[str]:
    return [rest for instruction, rest in _instructions() if instruction == name]


def test_the_dockerfile_builds_in_stages_from_pinned_images() -> None:
    """Compilers stay in the build stage; both stages start from one exact Python."""
    images = [words.split()[0] for words in _of("FROM")]
    assert len(images) == 2
    assert all(PINNED.match(image) for image in images)
    assert images[0] == images[1]
    last = [name for name, _ in _instructions()][::-1].index("FROM")
    assert not any("apt-get" in rest for name, rest in _instructions()[-last:] if name == "RUN")


def test_whatever_the_dockerfile_copies_is_there_and_let_in() -> None:
    """Each COPY source exists, and the ignore file beside the Dockerfile lets it into the build."""
    let_in = [
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"
    ]
    stages = [words.split()[-1] for words in _of("FROM") if " AS " in words]
    for rest in _of("COPY"):
        words = shlex.split(rest)
        flags = [word for word in words if word.startswith("--")]
        if flags:
            assert flags[0].removeprefix("--from=") in stages
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert any(source.removeprefix("./").startswith(place) for place in let_in), source


def test_the_image_runs_as_an_ordinary_user_and_says_how_it_is() -> None:
    """Not root; a health check; our program as its entry point."""
    (user,) = _of("USER")
    assert user not in ("root", "0")
    assert "/livez" in _of("HEALTHCHECK")[0]
    assert _of("ENTRYPOINT") == ['["sluiceway"]']


def test_the_image_installs_extras_that_the_package_has() -> None:
    """A misspelt extra would be a warning of pip, and a worker without it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    asked = re.search(r"\.\[([\w,]+)\]", " ".join(_of("RUN")))
    assert asked is not None
    assert set(asked[1].split(",")) <= set(extras)


# -- Prometheus and Grafana --------------------------------------------------------------------------------------------

PROMETHEUS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
RULES: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "sluiceway.json").read_text("utf-8"))


def _declared() -> dict[str, set[str]]:
    """Every series that a worker exposes, with its labels."""
    found: dict[str, set[str]] = {}
    for metric in vars(Metrics()).values():
        names = getattr(metric, "_labelnames", None)
        if names is None:
            continue
        for sample in metric.describe():
            name = sample.name
            suffixes = ("_bucket", "_sum", "_count") if sample.type == "histogram" else ("",)
            if sample.type == "counter":
                suffixes = ("_total",)
            for suffix in suffixes:
                found[name + suffix] = {*names, "instance", "job"} | ({"le"} if suffix == "_bucket" else set())
    return found


def _rules() -> Iterator[dict[str, Any]]:
    return (rule for group in RULES["groups"] for rule in group["rules"])


def _expressions() -> list[str]:
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return [*panels, *(rule["expr"] for rule in _rules())]


def test_the_declared_metrics_are_found() -> None:
    """The list that the next tests compare with is not empty by accident."""
    assert {"sluiceway_jobs_total", "sluiceway_job_duration_seconds_bucket", "sluiceway_jobs_in_flight"} <= set(
        _declared()
    )


@pytest.mark.parametrize("expression", _expressions())
def test_rules_and_panels_ask_for_metrics_and_labels_that_workers_have(expression: str) -> None:
    """A renamed metric or label would leave an empty panel, and an alert that never fires."""
    known = _declared() | {
        rule["record"]: {"task", "outcome", "consumergroup"} for rule in _rules() if "record" in rule
    }
    used = set(re.findall(r"\b(?:sluiceway[_:][\w:]+)", expression))
    assert used <= set(known), used - set(known)
    labels: set[str] = set().union(*(known[name] for name in used))
    grouped = {
        label.strip() for part in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression) for label in part.split(",")
    }
    matched = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    assert grouped | matched <= labels | {"job"}


def test_prometheus_reads_the_rules_that_are_mounted_and_scrapes_every_worker() -> None:
    """Each worker service is scraped at the port that a worker serves."""
    mounted = _binds(SERVICES["prometheus"])
    assert "/etc/prometheus/prometheus.yml" in mounted
    for file in PROMETHEUS["rule_files"]:
        assert f"/etc/prometheus/{file}" in mounted
    (scrape,) = [config for config in PROMETHEUS["scrape_configs"] if config["job_name"] == "sluiceway"]
    (found,) = scrape["dns_sd_configs"]
    workers = {name for name in OURS if SERVICES[name]["command"][0] == "work"}
    assert set(found["names"]) == workers
    assert {str(found["port"])} == {port for name in workers for port in SERVICES[name]["expose"]}


def test_each_alert_leads_to_its_page_of_the_runbook() -> None:
    """At 3 a.m. the link in an alert has to open on what to do."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "runbook.md").read_text("utf-8"), re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    alerts = [rule for rule in _rules() if "alert" in rule]
    assert alerts
    for rule in alerts:
        file, anchor = rule["annotations"]["runbook"].split("#")
        assert file == "docs/runbook.md"
        assert anchor in anchors, anchor


def test_grafana_finds_data_source_and_dashboard_where_they_are_mounted() -> None:
    """Provisioning names the mounted directory, and each panel the provisioned data source."""
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text("utf-8"))["datasources"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "sluiceway.yml").read_text("utf-8"))["providers"]
    mounted = _binds(SERVICES["grafana"])
    assert (mounted[provider["options"]["path"]] / "sluiceway.json").exists()
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {source["uid"]}
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].startswith(
        provider["options"]["path"]
    )


def test_promtool_accepts_configuration_and_rules_and_the_alerts_fire_when_they_should() -> None:
    """Prometheus' own tool checks the files and runs rules.test.yml."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus): the rules were parsed, not evaluated")
    for words in (
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules.test.yml"),
    ):
        done = subprocess.run([promtool, *words], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
