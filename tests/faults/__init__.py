"""The fault matrix against real worker processes, real Apache Kafka on disk and fake model servers.

    python -m tests.faults --full --seed 7                  every row at its full size
    python -m tests.faults --full --only 1 3 --seed 7       some of them
    python -m tests.faults                                  the fast form, which tests/faults/test_faults.py runs too

Each row makes its own topics, publishes, disturbs, and has what lies in the topics judged by the one checker
(tests/support/laws.py). Nothing that it has started outlives it.
"""
