"""Hostile input in numbers: `make fuzz` sets FUZZ_CASES, which the fuzz tests share out."""

import contextlib
import os
import signal

import hypothesis

CASES = int(os.environ.get("FUZZ_CASES", 100))
SECONDS = 60  # a case that takes longer counts as one that never ends


def cases(share: float) -> hypothesis.settings:
    """Return settings for a test's share of the cases: the same ones each time in `make test`."""
    return hypothesis.settings(
        max_examples=max(1, round(share * CASES)),
        derandomize=CASES <= 100,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextlib.contextmanager
def in_time():
    """Fail a case that hangs."""

    def stop(*_):
        raise TimeoutError(f"still at it after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
