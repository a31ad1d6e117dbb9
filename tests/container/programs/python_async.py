# asyncio with servers, clients, subprocesses and signals on the loopback; TLS; http.server.
import asyncio
import http.server
import os
import signal
import socket
import ssl
import threading
import urllib.request


async def serve(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def client(port, n, tls=None):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    for i in range(n):
        writer.write(f"line {i}\n".encode())
        assert await reader.readline() == f"LINE {i}\n".encode()
    writer.close()
    await writer.wait_closed()
    return n


def tls_context(purpose):
    # No certificate is needed without authentication.
    c = ssl.SSLContext(purpose)
    c.check_hostname = False
    c.verify_mode = ssl.CERT_NONE
    c.maximum_version = ssl.TLSVersion.TLSv1_2
    c.set_ciphers("AECDH-AES256-SHA:@SECLEVEL=0")
    return c


async def datagrams():
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, address):
            self.transport.sendto(data[::-1], address)

    class Ask(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            transport.sendto(b"datagram")

        def datagram_received(self, data, address):
            done.set_result(data)

    server, _ = await loop.create_datagram_endpoint(Echo, local_addr=("::1", 0))
    asking, _ = await loop.create_datagram_endpoint(Ask, remote_addr=server.get_extra_info("sockname")[:2])
    print(await done)
    server.close()
    asking.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    print(sum(await asyncio.gather(*(client(port, 20) for _ in range(100)))))
    server.close()
    tls = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls_context(ssl.PROTOCOL_TLS_SERVER))
    port = tls.sockets[0].getsockname()[1]
    print(sum(await asyncio.gather(*(client(port, 5, tls_context(ssl.PROTOCOL_TLS_CLIENT)) for _ in range(10)))))
    tls.close()
    await datagrams()
    unix = await asyncio.start_unix_server(serve, "/tmp/socket")
    reader, writer = await asyncio.open_unix_connection("/tmp/socket")
    writer.write(b"unix\n")
    print(await reader.readline())
    writer.close()
    unix.close()
    p = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    out, _ = await p.communicate(b"x" * 300000)
    print(len(out), p.returncode)
    got = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, got.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await got.wait()
    try:
        await asyncio.wait_for(asyncio.sleep(60), 0.05)
    except asyncio.TimeoutError:
        print("timed out")
    print(await asyncio.to_thread(lambda: sum(range(1000))))


asyncio.run(main())
os.makedirs("/tmp/www", exist_ok=True)
with open("/tmp/www/file", "wb") as f:
    f.write(bytes(range(256)) * 4096)
os.chdir("/tmp/www")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
threading.Thread(target=web.serve_forever, daemon=True).start()
for path in ("file", "", "missing"):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{web.server_port}/{path}") as r:
            print(r.status, len(r.read()))
    except urllib.error.HTTPError as e:
        print(e.code)
web.shutdown()
print(socket.getaddrinfo("127.0.0.1", 80, proto=socket.IPPROTO_TCP))
