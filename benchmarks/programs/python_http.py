"""A server and a client in one process, with a connection for each request."""

import http.client
import http.server
import os
import threading

about = "an HTTP server and client in python over loopback"
needs = "python3"
seconds = 1.0

COUNT = 2000 // int(os.environ["SCALE"])
BODY = b"x" * 10_000


class Handler(http.server.BaseHTTPRequestHandler):

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *args):
        pass


def setup():
    global port
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, daemon=True).start()


def run():
    for _ in range(COUNT):
        c = http.client.HTTPConnection("127.0.0.1", port)
        c.request("GET", "/")
        assert c.getresponse().read() == BODY
        c.close()
