"""Children of tests: their logs are read, their ends are noticed, and none outlives the test process."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.support.processes import Child, ChildError, run_sluiceway, wait_until

ROOT = Path(__file__).parents[2]
PATIENT = "import time; time.sleep(600)"


def python(code: str, tmp_path: Path, name: str = "child") -> Child:
    return Child([sys.executable, "-u", "-c", code], log=tmp_path / f"{name}.log", name=name)


def gone(pid: int) -> bool:
    """Whether the process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_an_event_in_the_log_is_waited_for(tmp_path: Path) -> None:
    with python(f'print(\'plain\'); print(\'{{"event": "ready", "n": 7}}\'); {PATIENT}', tmp_path) as child:
        assert child.wait_for_event("ready")["n"] == 7
        child.wait_for_text("plain")


def test_a_child_that_ends_first_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with (
        python("print('my last words'); raise SystemExit(3)", tmp_path) as child,
        pytest.raises(ChildError, match=r"ended with 3(.|\n)*my last words"),
    ):
        child.wait_for_event("ready")


def test_a_log_from_an_earlier_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    child = python("import os; print(f'<{os.getpid()}>')", tmp_path)
    child.start()
    child.wait_for_text(f"<{child.pid}>")
    first = child.pid
    child.wait(10)
    child.start()
    child.wait_for_text(f"<{child.pid}>")
    assert f"<{first}>" not in child.text()
    child.stop()


def test_a_deaf_child_is_killed_with_its_whole_group(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"print('grandchild', subprocess.Popen([sys.executable, '-c', {PATIENT!r}]).pid); {PATIENT}"
    )
    child = python(code, tmp_path).start()
    grandchild = int(child.wait_for(lambda log: log.partition("grandchild ")[2].partition("\n")[0] or None,
                                    within=20, what="the grandchild"))  # fmt: skip
    child.stop(within=0.2)
    wait_until(lambda: gone(grandchild) or None, within=10, what="the grandchild's end")
    assert child.returncode == -signal.SIGKILL


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_no_child_outlives_a_killed_test_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.support.processes import Child; import sys, time\n"
        f"child = Child([sys.executable, '-c', {PATIENT!r}], log=Path({str(tmp_path)!r}) / 'inner.log').start()\n"
        f"print('<', child.pid, '>', flush=True); {PATIENT}"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as tester:
        assert tester.stdout is not None
        inner = int(tester.stdout.readline().split()[1])
        assert not gone(inner)
        tester.kill()
    wait_until(lambda: gone(inner) or None, within=10, what="the child's end")


def test_a_frozen_child_is_stopped_all_the_same(tmp_path: Path) -> None:
    child = python(f"print('up'); {PATIENT}", tmp_path).start()
    child.wait_for_text("up")
    child.freeze()
    child.stop(within=5)
    assert child.returncode == -signal.SIGTERM


def test_readiness_is_asked_until_it_is_granted(tmp_path: Path) -> None:
    asked: list[int] = []

    class Probe(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(1)
            self.send_response(200 if len(asked) > 3 else 503)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Probe) as server, python(PATIENT, tmp_path) as child:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        child.wait_for_http(f"http://127.0.0.1:{server.server_port}/readyz", within=10)
        server.shutdown()
        thread.join()
    assert len(asked) == 4


def test_the_installed_command_runs(tmp_path: Path) -> None:
    done = run_sluiceway("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "work" in done.stdout
    assert os.listdir(tmp_path) == []
