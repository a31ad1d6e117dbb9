# Processes of Python: multiprocessing by fork, spawn and forkserver, shared memory, subprocess, signals.
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import shared_memory


def square(x):
    return x * x


def count(lock, value, n):
    for _ in range(n):
        with lock:
            value.value += 1


def echo(connection):
    while (message := connection.recv()) is not None:
        connection.send((message, len(message)))


def fill(name, at):
    memory = shared_memory.SharedMemory(name=name)
    memory.buf[at] = at
    memory.close()


def by(method):
    c = mp.get_context(method)
    with c.Pool(4) as pool:
        print(method, sum(pool.map(square, range(2000))), pool.apply_async(square, (12,)).get())
    lock, value = c.Lock(), c.Value("i", 0, lock=False)
    workers = [c.Process(target=count, args=(lock, value, 200)) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    print(method, value.value, [w.exitcode for w in workers])
    here, there = c.Pipe()
    p = c.Process(target=echo, args=(there,))
    p.start()
    for message in ("one", b"two" * 100000, list(range(1000))):
        here.send(message)
        got, length = here.recv()
        print(method, got == message, length)
    here.send(None)
    p.join()
    memory = shared_memory.SharedMemory(create=True, size=4096)
    fillers = [c.Process(target=fill, args=(memory.name, i)) for i in range(1, 5)]
    for f in fillers:
        f.start()
    for f in fillers:
        f.join()
    print(method, bytes(memory.buf[:6]))
    memory.close()
    memory.unlink()


def main():
    for method in ("fork", "spawn", "forkserver"):
        by(method)
    with ProcessPoolExecutor(2) as executor:
        print(list(executor.map(square, range(10))))
    with ThreadPoolExecutor(16) as executor:
        print(sum(executor.map(square, range(1000))))
    # A pipeline, a time-out, a signal's exit status, a lot of output and input.
    r = subprocess.run(["sort", "-n"], input="\n".join(str(i * 7919 % 10007) for i in range(10000)), text=True,
                       capture_output=True)
    print(r.returncode, r.stdout.split()[:5], len(r.stdout))
    try:
        subprocess.run(["sleep", "60"], timeout=0.2)
    except subprocess.TimeoutExpired as e:
        print("timed out", e.cmd)
    p = subprocess.Popen(["sleep", "60"], start_new_session=True)
    os.killpg(p.pid, signal.SIGTERM)
    print(p.wait())
    print(subprocess.run([sys.executable, "-c", "import sys; sys.exit(3)"]).returncode)
    got = []
    signal.signal(signal.SIGUSR1, lambda n, frame: got.append(n))
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    time.sleep(0.3)
    print(got == [signal.SIGUSR1], signal.sigtimedwait([signal.SIGUSR2], 0.05))


if __name__ == "__main__":
    main()
