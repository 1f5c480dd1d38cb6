"""Serves the page on which a network reads drawn digits in the browser.

    (cd examples/browser && npm ci)                 # LiteRT.js, once
    python examples/quickstart.py                   # trains and exports the network
    python examples/browser/serve.py                # then open http://localhost:8000

Any server of static files will do instead: it has to send .wasm files as application/wasm, and the
exported file as `model.tflite` beside `index.html`.
"""

import contextlib
import functools
import http.server
import pathlib
import socket
import threading

from absl import app, flags

PAGES = pathlib.Path(__file__).resolve().parent
LITERT = PAGES / "node_modules" / "@litertjs" / "core"

FLAGS = flags.FLAGS


def main(_):
    address = FLAGS.host, FLAGS.port
    with listening({"/model.tflite": pathlib.Path(FLAGS.model)}, address=address) as server:
        hosts = {"127.0.0.1": "localhost", "0.0.0.0": socket.gethostname()}
        host = hosts.get(FLAGS.host, FLAGS.host)
        print(f"http://{host}:{server.server_port}/ (end with Ctrl+C)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Sends the files of this folder, and files from elsewhere under names of their own.

    Args:
        files: {path in the address: file}.
    """

    # Not those of the operating system, which may be others: modules and WebAssembly need these.
    extensions_map = {
        "": "application/octet-stream",
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript",
        ".json": "application/json",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def __init__(self, *args, files, **kwargs):
        self.files = files
        super().__init__(*args, directory=PAGES, **kwargs)

    def translate_path(self, path):
        name = path.split("?")[0].split("#")[0]
        return str(self.files[name]) if name in self.files else super().translate_path(path)

    def end_headers(self):
        # A newer model can be of the same second, which "Last-Modified" does not tell.
        is_own = getattr(self, "path", "").split("?")[0] in self.files
        self.send_header("Cache-Control", "no-store" if is_own else "no-cache")
        super().end_headers()

    def log_message(self, format, *args):
        pass


@contextlib.contextmanager
def listening(files, *, address=("127.0.0.1", 0)):
    """Gives a server that answers in a thread of its own.

    Args:
        files: As of `Handler`; read anew for every request.
        address: (host, port); port 0 is a free one, and `server_port` says which.
    """
    handler = functools.partial(Handler, files=files)
    with http.server.ThreadingHTTPServer(address, handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    flags.DEFINE_string("model", "out/quickstart/speq.tflite", "The file that quickstart.py wrote.")
    flags.DEFINE_integer("port", 8000, "Port.", 0, 65535)
    flags.DEFINE_string(
        "host", "127.0.0.1", "Address to listen at; 0.0.0.0 for a phone in the same network."
    )
    app.run(main)
