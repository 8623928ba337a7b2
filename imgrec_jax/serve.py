"""Command line: python -m imgrec_jax.serve --workdir=runs/mnist   (or, once installed: imgrec serve ...)

A page on this machine to try a run on: choose, drop, draw or photograph an image, and see the answer and what speaks for it.
The same for programs, as JSON:

  curl -F image=@photo.jpg http://127.0.0.1:8000/predict
  curl -F image=@photo.jpg -F picture=true -F explain=gradcam http://127.0.0.1:8000/predict
  curl -H 'Content-Type: application/json' -d '{"image": "BASE64"}' http://127.0.0.1:8000/predict
  curl http://127.0.0.1:8000/health
"""

import argparse
import contextlib
import errno
import math
import os
import signal
import socket
import sys
from collections.abc import Sequence

from imgrec_jax.inference.command import Parser, ending_in_one_line, workdir_flags

STOPPING_SECONDS = 5.0  # for answers that are on their way when the server is told to end


def parser() -> Parser:
    made = Parser("serve", __doc__)
    workdir_flags(made)
    made.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    made.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1, this machine alone; 0.0.0.0 lets everybody in "
                      "who can reach it, without a password")  # fmt: skip
    made.add_argument("--batch", type=int, default=8, help="images that are answered together at most (default 8)")
    made.add_argument("--queue", type=int, default=64, help="requests at a time; those beyond get 429 (default 64)")
    made.add_argument("--max_mb", type=float, default=20, help="of an uploaded image (default 20)")
    made.add_argument("--max_pixels", type=int, default=50_000_000, help="height x width of an image (default 50,000,000)")
    return made


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound already, so that a port that is taken is told before anything is loaded.

    Raises:
      ValueError: where it cannot be had.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"--port={port}; expected 0 to 65535")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.getaddrinfo(host, port, family)
        return socket.create_server((host, port), family=family, backlog=2048)
    except (socket.gaierror, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"--host={host} is no address ({why}); give 127.0.0.1, or 0.0.0.0 for everybody") from error
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise ValueError(f"--host={host} is none of this machine; give 127.0.0.1, or 0.0.0.0 for everybody") from error
        place = f"--host={host} --port={port}"
        raise ValueError(f"{place} cannot be listened on ({os.strerror(error.errno or 0)}); give another --port") from error


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to end; returns the exit status."""
    for name, least in (("batch", 1), ("queue", 1), ("max_pixels", 1), ("max_mb", 1e-3)):
        if not least <= getattr(arguments, name) < math.inf:
            raise ValueError(f"--{name}={getattr(arguments, name)}; expected {least} or more")
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ImportError(f"{error.name} is not installed; pip install 'imgrec-jax[serve]'") from error
    with listen(arguments.host, arguments.port) as place:
        from imgrec_jax.inference import command
        from imgrec_jax.run.writers import emit
        from imgrec_jax.serving.app import Server, is_local
        from imgrec_jax.serving.uploads import Limits
        from imgrec_jax.serving.work import Worker

        loaded = command.load(arguments)
        for line in loaded.lacks:
            command.note(f"note: {line}")
        limits = Limits(int(arguments.max_mb * 1e6), min(arguments.max_pixels, loaded.config.data.max_pixels))
        worker = Worker(loaded, arguments.batch, limits.pixels)
        server = Server(loaded, worker, limits, arguments.queue)
        app = server.app(is_local(f"[{arguments.host}]" if ":" in arguments.host else arguments.host))
        patience = int(STOPPING_SECONDS)
        # Without the protocol of starting and ending, which the app has no use for and a Ctrl-C in its midst would break.
        web = uvicorn.Server(uvicorn.Config(
            app, log_level="warning", timeout_graceful_shutdown=patience, server_header=False, lifespan="off",
        ))  # fmt: skip
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        address = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
        worker.start()
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
            emit(f"{loaded} at http://{address}:{place.getsockname()[1]} (Ctrl-C ends it)")
            web.run(sockets=[place])
        ended = worker.stop(STOPPING_SECONDS)
        emit(f"stopped; {server.counts['answered']:,} images were answered")
        if not ended:  # a program is being compiled, and an orderly end would wait for it
            sys.stderr.flush()
            os._exit(0)
    return 0


def main(argv: Sequence[str] | None = None) -> None:
    with ending_in_one_line():
        raise SystemExit(run(parser().parse(argv)))


if __name__ == "__main__":
    main()
