"""The command line: verbs, with no logic of their own. They import what they need when they run: --help stays quick.

Exit codes: 0 done, 1 failed, 2 wrong use (of a command, a policy, a file, a cluster), 130 interrupted.
"""

from sluiceway.cli.app import main as main
