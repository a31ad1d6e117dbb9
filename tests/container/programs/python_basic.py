# threading, subprocess, tempfile, socketpair, signals, mmap, select.
import ctypes, fcntl, hashlib, json, mmap, multiprocessing, os, queue, random, re, select, selectors
import shutil, signal, socket, struct, subprocess, sys, tempfile, threading, time

total, lock = 0, threading.Lock()
def add(n):
    global total
    for _ in range(1000):
        with lock:
            total += n
threads = [threading.Thread(target=add, args=(i,)) for i in range(10)]
[t.start() for t in threads]; [t.join() for t in threads]
print("threads", total)

q = queue.Queue()
consumer = threading.Thread(target=lambda: print("sum", sum(iter(q.get, None))))
consumer.start(); [q.put(i) for i in range(1000)]; q.put(None); consumer.join()

print(subprocess.run(["sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True))
print(subprocess.check_output("cat | tr a-z A-Z", shell=True, input=b"hello"))
p = subprocess.Popen(["sleep", "10"]); p.terminate(); print("terminated", p.wait())
try:
    subprocess.run(["sleep", "10"], timeout=0.2)
except subprocess.TimeoutExpired as e:
    print("timeout", e.cmd)
try:
    subprocess.run(["/no/such/program"])
except FileNotFoundError as e:
    print("missing", e.errno)

with tempfile.TemporaryDirectory() as d:
    path = os.path.join(d, "file")
    with open(path, "w") as f:
        f.write("x" * 100000)
    print(os.stat(path).st_size, sorted(os.listdir(d)))
    with open(path, "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
        m[0:5] = b"hello"; m.flush()
        print(m.find(b"o"), len(m))
    print(open(path).read(7))
    shutil.copytree(d, d + "2"); print(os.listdir(d + "2")); shutil.rmtree(d + "2")
    os.symlink("file", os.path.join(d, "link")); print(os.path.realpath(os.path.join(d, "link")) == os.path.realpath(path))
with tempfile.TemporaryFile() as f:
    f.write(b"abc"); f.seek(0); print(f.read())

a, b = socket.socketpair()
a.sendall(b"ping"); print(b.recv(10)); b.close(); print(a.recv(10))
r, w = os.pipe()
print(select.select([r], [w], [], 0)[0] == [], select.select([r], [w], [], 0)[1] == [w])
sel = selectors.DefaultSelector(); sel.register(r, selectors.EVENT_READ)
threading.Timer(0.05, os.write, (w, b"x")).start()
print(len(sel.select(5)), os.read(r, 1))

got = []
signal.signal(signal.SIGUSR1, lambda s, f: got.append(s))
os.kill(os.getpid(), signal.SIGUSR1); time.sleep(0.01); print(got == [signal.SIGUSR1])
signal.signal(signal.SIGALRM, lambda s, f: got.append(s))
signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(0.2); print(len(got))

m = mmap.mmap(-1, 4096)
pid = os.fork()
if pid == 0:
    m[0] = 42; os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), m[0])

def square(x): return x * x
with multiprocessing.Pool(2) as pool:
    print(pool.map(square, range(10)))
parent, child = multiprocessing.Pipe()
proc = multiprocessing.Process(target=lambda c: c.send({"a": 1}), args=(child,)); proc.start()
print(parent.recv()); proc.join(); print(proc.exitcode)
print(hashlib.sha256(open("/usr/bin/python3", "rb").read()).hexdigest())
print(ctypes.CDLL(None).getpid() == os.getpid())
print(os.cpu_count() >= 1, os.uname().sysname, os.getcwd(), sys.platform)
print(json.dumps(sorted(os.listdir("/"))[:5]), os.path.ismount("/proc"))
print(struct.unpack("i", fcntl.ioctl(r, 0x541B, b"\0" * 4)))
fd = os.memfd_create("x"); os.write(fd, b"memfd"); print(os.pread(fd, 10, 0), os.fstat(fd).st_size)
import asyncio
async def work(n):
    await asyncio.sleep(0.01 * n); return n
async def main():
    proc = await asyncio.create_subprocess_exec("echo", "async", stdout=asyncio.subprocess.PIPE)
    out, _ = await proc.communicate()
    return await asyncio.gather(*(work(i) for i in range(5))), out
print(asyncio.run(main()))
sys.exit(9)
