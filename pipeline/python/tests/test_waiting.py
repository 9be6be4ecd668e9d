"""While a loader waits for a store that does not answer: Ctrl-C works, other threads run."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import run_python
from s3 import S3Server

# Sends five interrupts, each half a second into a wait, and prints how long each took to arrive in
# milliseconds, and how often another thread woke up meanwhile, of about fifty times in each wait.
MEASURE = """
import os, signal, sys, threading, time, nepa

sent = 0.0
ticks = 0


def interrupt():
    global sent
    time.sleep(0.5)
    sent = time.monotonic()
    os.kill(os.getpid(), signal.SIGINT)


def tick():
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1


threading.Thread(target=tick, daemon=True).start()


def measure(wait):
    for _ in range(5):
        threading.Thread(target=interrupt).start()
        try:
            wait()
        except KeyboardInterrupt:
            print(1000 * (time.monotonic() - sent), flush=True)
        else:
            sys.exit("it did not wait")
    print(ticks)
"""

OPEN = 'measure(lambda: nepa.Loader("s3://test", framework="dlpack"))'

NEXT = """
batches = iter(nepa.Loader("s3://test", batch_size=16, framework="dlpack"))
print("opened", flush=True)
sys.stdin.readline()
measure(lambda: next(batches))
"""


@pytest.fixture
def server(photos: Path) -> Iterator[S3Server]:
    server = S3Server(photos)
    yield server
    server.close()


def check(lines: list[str]) -> None:
    """200 ms are promised on an idle machine, and the median stays below that on a busy one."""
    delays, ticks = [float(line) for line in lines[:-1]], int(lines[-1])
    assert len(delays) == 5
    assert statistics.median(delays) < 200, delays
    assert max(delays) < 2_000, delays
    assert ticks > 100, f"another thread woke up {ticks} times in 2.5 seconds"


def test_an_interrupt_ends_the_wait_for_a_data_set(server: S3Server) -> None:
    server.speaks.clear()
    check(run_python(MEASURE + OPEN, timeout=60, **server.environ).splitlines())


def test_an_interrupt_ends_the_wait_for_a_batch(server: S3Server) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", MEASURE + NEXT],
        env={**os.environ, **server.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "opened\n"
        server.speaks.clear()
        said, _ = child.communicate("go\n", timeout=60)
        assert child.returncode == 0
    check(said.splitlines())


def test_a_wait_that_was_interrupted_goes_on_with_the_same_batch(photos: Path) -> None:
    said = run_python(
        """
        import os, signal, sys, threading
        from pathlib import Path

        sys.path.insert(0, sys.argv[2])
        import nepa
        from s3 import S3Server

        server = S3Server(Path(sys.argv[1]))
        os.environ.update(server.environ)
        settings = dict(batch_size=16, framework="dlpack", seed=2)
        expected = [batch.ids for batch in nepa.Loader("s3://test", **settings)]
        batches = iter(nepa.Loader("s3://test", **settings))
        server.speaks.clear()
        for _ in range(3):
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                next(batches)
            except KeyboardInterrupt:
                print("interrupted")
        server.speaks.set()
        print([batch.ids for batch in batches] == expected)
        """,
        photos,
        Path(__file__).parent,
        timeout=60,
    )
    assert said.split() == ["interrupted"] * 3 + ["True"]
