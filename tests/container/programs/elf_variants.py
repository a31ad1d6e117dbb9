# Damaged programs: a static and a dynamic one cut at each of 200 offsets, and with random bytes in
# their headers. execve(2) answers with the same errno, or the program ends as it does on the host.
import os, random, resource, signal, struct, sys

os.chdir("/tmp")
rng = random.Random(20240607)

def run(name):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(r)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2): os.dup2(null, fd)
        resource.setrlimit(resource.RLIMIT_CPU, (2, 2))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(10)
        try:
            os.execve("./" + name, ["./" + name], {})
        except OSError as e:
            os.write(w, b"%d" % e.errno)
        os._exit(99)
    os.close(w)
    errno = os.read(r, 16)
    os.close(r)
    status = os.waitpid(pid, 0)[1]
    if errno: return f"errno {int(errno)}"
    # Which of these two depends on what a page beyond the end of the file is touched by.
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGSEGV, signal.SIGBUS): return "fault"
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"

def write(name, data):
    with open(name, "wb") as f: f.write(data)
    os.chmod(name, 0o755)

def headers(image):
    """Where the bytes lie that the kernel reads: the ELF header and the program headers."""
    phoff, = struct.unpack_from("<Q", image, 32)
    phentsize, phnum = struct.unpack_from("<HH", image, 54)
    return list(range(64)) + list(range(phoff, phoff + phentsize * phnum))

for source in ("/bin/true", "/bin/busybox"):
    with open(source, "rb") as f: image = f.read()
    base = os.path.basename(source)
    spots = headers(image)
    # Most cuts where something is decided, the others spread over the file.
    cuts = list(range(0, 100)) + sorted(rng.sample(range(100, len(image)), 100))
    for cut in cuts:
        write("cut", image[:cut])
        print(base, "cut", cut, run("cut"))
    # One byte of the header of the file: each value is read alike.
    for n in range(300):
        damaged = bytearray(image)
        changed = rng.sample(spots, rng.choice([1, 1, 1, 2, 5]))
        for at in changed: damaged[at] = rng.choice([0, 1, 0x7f, 0x80, 0xff, rng.randrange(256)])
        write("bytes", damaged)
        print(base, "bytes", sorted(changed), run("bytes"))
write("empty", b"")
print("empty", run("empty"))
for text in (b"#!", b"#!\n", b"#!   \n", b"#!/no/such\n", b"#!./loop\n", b"#!/tmp\n", b"#!/bin/sh -e\nexit 4\n",
             b"#!" + b"x" * 300, b"#!/bin/true\0x\n", b"#! /bin/echo"):
    write("loop", text)
    print("script", text[:20], run("loop"))
os.symlink("link", "link")
print("link", run("link"))
os.mkdir("directory")
print("directory", run("directory"))
os.mkfifo("fifo", 0o755)
print("fifo", run("fifo"))
write("plain", b"x"); os.chmod("plain", 0o644)
print("plain", run("plain"))
print("missing", run("missing"))
