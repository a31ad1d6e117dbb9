# asyncio streams and datagrams, http.server with urllib, socketserver, select, on loopback.
import asyncio, http.server, os, select, socket, socketserver, tempfile, threading, urllib.request


async def streams(host):
    async def serve(reader, writer):
        while line := await reader.readline():
            writer.write(line.upper())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    port = server.sockets[0].getsockname()[1]

    async def client(n):
        reader, writer = await asyncio.open_connection(host, port)
        out = []
        for i in range(20):
            writer.write(f"client {n} line {i}\n".encode())
            out.append((await reader.readline()).decode().strip())
        writer.close()
        await writer.wait_closed()
        return out[-1]

    print(host, sorted(await asyncio.gather(*(client(n) for n in range(30)))))
    big = bytes(range(256)) * 8192

    async def echo(reader, writer):
        writer.write(await reader.readexactly(len(big)))
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(echo, host, 0)
    reader, writer = await asyncio.open_connection(host, other.sockets[0].getsockname()[1])
    writer.write(big)
    print("echoed", await reader.read(-1) == big)
    server.close()
    other.close()


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data[::-1], address)


class Ask(asyncio.DatagramProtocol):
    def __init__(self, done):
        self.done, self.errors = done, []

    def datagram_received(self, data, address):
        self.done.set_result(data)

    def error_received(self, error):
        self.done.set_result(type(error).__name__)


async def datagrams():
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    address = transport.get_extra_info("sockname")
    for text in (b"stressed", b"drawer"):
        done = loop.create_future()
        client, _ = await loop.create_datagram_endpoint(lambda: Ask(done), remote_addr=address)
        client.sendto(text)
        print(await done)
        client.close()
    transport.close()
    await asyncio.sleep(0)
    done = loop.create_future()
    client, _ = await loop.create_datagram_endpoint(lambda: Ask(done), remote_addr=address)
    client.sendto(b"x")
    print(await done)
    client.close()


asyncio.run(streams("127.0.0.1"))
asyncio.run(streams("::1"))
asyncio.run(datagrams())

with tempfile.TemporaryDirectory() as d:
    os.chdir(d)
    with open("page.txt", "w") as f:
        f.write("a page\n" * 10000)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever).start()
    url = f"http://127.0.0.1:{server.server_port}/page.txt"
    for _ in range(5):
        with urllib.request.urlopen(url) as r:
            print(r.status, r.headers["Content-Length"], len(r.read()))
    try:
        urllib.request.urlopen(url + "x")
    except urllib.error.HTTPError as e:
        print(e.code)
    server.shutdown()
    server.server_close()
    os.chdir("/")
try:
    urllib.request.urlopen(url)
except urllib.error.URLError as e:
    print(type(e.reason).__name__)


class Sum(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(str(sum(map(int, line.split()))).encode() + b"\n")


with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Sum) as server:
    threading.Thread(target=server.serve_forever).start()
    with socket.create_connection(server.server_address) as c, c.makefile("rw") as f:
        for i in range(3):
            f.write(f"{i} 2 3\n")
            f.flush()
            print(f.readline().strip())
    server.shutdown()

listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
port = listener.getsockname()[1]
clients = [socket.create_connection((h, port)) for h in ("127.0.0.1", "::1")]
for c in clients:
    c.setblocking(False)
    s, a = listener.accept()
    print(a[0])
    s.sendall(b"hi")
    print(select.select([c], [], [], 5)[0] == [c], c.recv(10))
    s.close()
print([n for _, n in socket.if_nameindex() if n == "lo"], socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))
