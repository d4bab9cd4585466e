"""Processes that share the work of a sky."""

import os
import signal
import subprocess
import sys
import time

from deepdisc.simulate.processes import process_pool

KILLED = """
import os, signal
from deepdisc.simulate.processes import process_pool
if __name__ == "__main__":
    with process_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_no_process_outlives_one_that_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    done = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    process, until = int(done.stdout), time.monotonic() + 30
    while is_running(process) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(process)


def test_each_process_is_started_with_the_arguments(tmp_path):
    with process_pool(1, os.chdir, tmp_path) as pool:
        assert pool.submit(os.getcwd).result() == str(tmp_path.resolve()) != os.getcwd()
