"""Runs a python workload in its container: sets it up, then one timed run for each line of input."""

import os
import sys
import time

sys.path.insert(0, "/bench")
os.makedirs("/srv/bench", exist_ok=True)
os.chdir("/srv/bench")
import workload  # noqa: E402

out = os.dup(1)
os.dup2(os.open("/tmp/driver.out", os.O_WRONLY | os.O_CREAT, 0o644), 1)


def say(text):
    os.write(out, (text + "\n").encode())


getattr(workload, "setup", lambda: None)()
say("ready")
for _ in sys.stdin:
    getattr(workload, "prepare", lambda: None)()
    begin = time.monotonic_ns()
    try:
        workload.run()
        status, words = 0, ""
    except Exception as e:
        status, words = 1, repr(e)[:200].replace("\n", " ")
    say(f"time {status} {(time.monotonic_ns() - begin) // 1000} {words}")
