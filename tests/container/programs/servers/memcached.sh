# memcached: TCP, UDP and UNIX sockets, many clients at once, expiry, SIGTERM.
cd /tmp
cat > client.py <<'END'
import socket, sys, threading, time
def connect(kind):
    for _ in range(200):
        s = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        try:
            s.connect("/tmp/mc.sock" if kind == "unix" else ("127.0.0.1", 11222))
            return s.makefile("rwb")
        except OSError:
            time.sleep(0.1)
def set(f, k, v, ttl=0):
    f.write(b"set %s 0 %d %d\r\n%s\r\n" % (k, ttl, len(v), v)); f.flush(); return f.readline()
def get(f, k):
    f.write(b"get %s\r\n" % k); f.flush(); l = f.readline()
    if l == b"END\r\n": return None
    v = f.read(int(l.split()[3])); f.readline(); f.readline(); return v
kind = sys.argv[1]
f = connect(kind)
print(set(f, b"k", b"v" * 1000), len(get(f, b"k")), get(f, b"none"), set(f, b"big", b"x" * 900000), len(get(f, b"big")))
good = [0] * 30
def work(i):
    g = connect(kind)
    for j in range(100):
        set(g, b"%d" % i, b"value %d" % j)
        good[i] += get(g, b"%d" % i) == b"value %d" % j
ts = [threading.Thread(target=work, args=(i,)) for i in range(30)]
[t.start() for t in ts]; [t.join() for t in ts]
print(sum(good)); set(f, b"short", b"1", 1)
for _ in range(100):
    if get(f, b"short") is None: break
    time.sleep(0.1)
print(get(f, b"short")); f.write(b"incr n 1\r\nset n 0 0 1\r\n7\r\nincr n 35\r\nflush_all\r\nget k\r\nversion\r\n"); f.flush()
print([f.readline() for _ in range(5)])
if kind == "tcp":
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.settimeout(20); u.sendto(b"\0\1\0\0\0\1\0\0get none\r\n", ("127.0.0.1", 11222)); print(u.recv(100))
END
memcached -u nobody -l 127.0.0.1 -p 11222 -U 11222 -t 4 -m 64 & pid=$!
python3 client.py tcp; kill $pid; wait $pid; echo "status $?"
memcached -u nobody -s /tmp/mc.sock -a 777 & pid=$!
python3 client.py unix; kill -INT $pid; wait $pid; echo "status $?"
