"""Arithmetic in one process: what a sandbox can only slow down by being in the way."""

import os

about = "a computation without system calls"
needs = "python3"
seconds = 1.0

COUNT = 12_000_000 // int(os.environ["SCALE"])


def run():
    value = 1
    for i in range(COUNT):
        value = (value * 1103515245 + 12345 + i) & 0x7FFFFFFF
    print(value)
