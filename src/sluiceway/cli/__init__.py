"""The command line: verbs, with no logic of their own. They import what they need when they run: --help stays quick.

Exit codes: 0 done, 1 failed, 2 wrong use (of a command, a policy, a file, a cluster), 130 interrupted.
"""


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        # In here, as Ctrl-C may come while the verbs are still being imported.
        from sluiceway.cli.app import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
