# sqlite3, ctypes, venv, and what the interpreter says of the machine.
import ctypes
import mmap
import os
import resource
import sqlite3
import subprocess
import tempfile
import time

db = sqlite3.connect("/tmp/t.db", isolation_level=None)
print(db.execute("pragma journal_mode=wal").fetchone())
db.execute("create table t(id integer primary key, a text)")
db.execute("begin")
db.executemany("insert into t(a) values(?)", ((f"row {i % 97}",) for i in range(20000)))
db.execute("commit")
other = sqlite3.connect("/tmp/t.db", timeout=0.1, isolation_level=None)
db.execute("begin immediate")
try:
    other.execute("begin immediate")
except sqlite3.OperationalError as e:
    print(e)
db.execute("commit")
print(other.execute("select a, count(*) from t group by a order by a limit 3").fetchall())

libc = ctypes.CDLL(None, use_errno=True)
print(libc.getpid() == os.getpid(), libc.strlen(b"twelve chars"))
compare = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
numbers = (ctypes.c_int * 6)(5, 3, 9, 1, 7, 2)
libc.qsort(numbers, 6, ctypes.sizeof(ctypes.c_int), compare(lambda a, b: a[0] - b[0]))
print(list(numbers), libc.open(b"/missing", 0), ctypes.get_errno())

with tempfile.TemporaryDirectory() as d:
    print(subprocess.run(["python3", "-m", "venv", "--without-pip", d + "/env"]).returncode)
    print(subprocess.run([d + "/env/bin/python", "-c", "import sys; print(sys.prefix != sys.base_prefix)"],
                         capture_output=True, text=True).stdout.strip())

with open("/tmp/mapped", "w+b") as f:
    f.truncate(1 << 20)
    m = mmap.mmap(f.fileno(), 0)
    m[1000:1005] = b"hello"
    m.flush()
    f.seek(1000)
    print(f.read(5), m.find(b"hello"))
    m.close()

print(os.cpu_count() == len(os.sched_getaffinity(0)))
with open("/proc/cpuinfo") as f:
    print(sum(line.startswith("processor") for line in f) == os.cpu_count())
begin = time.process_time()
while time.process_time() - begin < 0.1:
    pass
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime >= 0.1, used.ru_maxrss > 1000, time.thread_time() > 0.05)
print(os.getloadavg()[0] >= 0, os.sysconf("SC_PHYS_PAGES") > 1000, os.sysconf("SC_AVPHYS_PAGES") > 0)
