"""`codecvit llava web`: a page to talk to a model, served to this machine alone unless told."""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...codec.llava.options import mosaic_options
from .arguments import add_chat_arguments, decoding_of, load_model
from .guard import Guard, is_loopback

if TYPE_CHECKING:
    from .session import Decoding
    from .sight import Reader
    from .uploads import Limits

LOOPBACK = "127.0.0.1"
_SESSIONS = 64  # conversations kept; the one that was used longest ago goes first


def main(argv: list[str]) -> int:
    """The verb: 0 when it is ended; 2 for what cannot work."""
    args = _parser().parse_args(argv)
    try:
        _check(args)
        options, decoding = mosaic_options(args), decoding_of(args)
        from .sight import Reader
        from .uploads import Limits

        limits = Limits(int(args.max_upload * 1e6), args.max_seconds)
        reader = Reader(load_model(args), options)
        if not is_loopback(args.host):
            print(_warning(args), file=sys.stderr, flush=True)
        name = Path(args.model).resolve()
        title = name.parent.name if name.name == "model" else name.name
        ended = _until_asked_to_end()
        with serve(reader, title, decoding, limits, args.host, args.port, args.queue) as address:
            print(f"{address}  (Ctrl-C ends it)", flush=True)
            ended.wait()
    except (ValueError, OSError) as error:
        print(f"codecvit llava web: {error}", file=sys.stderr)
        return 2
    return 0


@contextmanager
def serve(
    reader: Reader,
    title: str,
    decoding: Decoding,
    limits: Limits,
    host: str = LOOPBACK,
    port: int = 7860,
    queue: int = 8,
) -> Iterator[str]:
    """Serves the page; its temporary files are gone in the end.

    Args:
      reader: reads uploads for the model.
      title: how the page calls the model.
      decoding, limits: see `page.Page`.
      host: address to listen at.
      port: likewise.
      queue: most requests that wait; one is worked on at a time.

    Yields:
      The address of the page.

    Raises:
      OSError: the address is taken, or not of this machine.
    """
    _require_free(host, port)
    with tempfile.TemporaryDirectory(prefix="codecvit-web-") as folder:
        _settle_environment(folder)
        import gradio as gr
        from starlette.middleware import Middleware

        from .page import CSS, Page

        uploads = Path(folder)
        blocks = Page(reader, title, decoding, limits, uploads).build()
        blocks.queue(max_size=queue, default_concurrency_limit=1)
        guard = Middleware(
            Guard, uploads=uploads, max_upload=limits.bytes, any_host=not is_loopback(host)
        )
        # A font of the theme's own would come from another server.
        theme = gr.themes.Soft(
            font=("ui-sans-serif", "system-ui", "sans-serif"),
            font_mono=("ui-monospace", "monospace"),
        )
        try:
            blocks.launch(
                server_name=f"[{host}]" if ":" in host else host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                inbrowser=False,
                inline=False,
                theme=theme,
                css=CSS,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                num_workers=0,
                allowed_paths=[],
                max_file_size=limits.bytes,
                state_session_capacity=_SESSIONS,
                app_kwargs={"middleware": [guard]},
            )
            yield f"http://{_shown(host)}:{port}/"
        finally:
            blocks.close(verbose=False)


def _settle_environment(folder: str) -> None:
    """Gradio reads variables where it is not told otherwise: none of them may open anything."""
    for name in [name for name in os.environ if name.startswith("GRADIO_")]:
        del os.environ[name]
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # It asks its own server whether it is there: not by way of a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        told = [part for part in os.environ.get(name, "").split(",") if part]
        os.environ[name] = ",".join(dict.fromkeys([*told, LOOPBACK, "localhost"]))


def _require_free(host: str, port: int) -> None:
    """Raises an OSError unless the address can be listened at."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise OSError(
            f"cannot listen at {host}, port {port} ({error.strerror or error}): choose another "
            "--port or --host"
        ) from error


def _check(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError('needs the extra `web`: pip install "codecvit[web]"')
    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port {args.port} must lie in 1..65535")
    if args.queue < 1:
        raise ValueError(f"--queue {args.queue} must be at least 1")


def _until_asked_to_end() -> threading.Event:
    """Is set by Ctrl-C or a polite end of the process; from now on neither ends it at once."""
    ended = threading.Event()

    def end(number: int, frame: Any) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return ended


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else {"0.0.0.0": "localhost"}.get(host, host)


def _warning(args: argparse.Namespace) -> str:
    return (
        f"WARNING: everyone who reaches {args.host}, port {args.port}, over the network can use "
        f"this model and this machine's time, and upload files of up to {args.max_upload:g} MB, "
        "which FFmpeg and Pillow decode here. There is no password and no encryption: put a server "
        "that has both in front of it, or leave --host out and come by `ssh -L`."
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="codecvit llava web",
        description="Serves a page: drop a video, see its frames and the patches that are read of "
        "them, ask, and go on asking. To this machine alone, unless --host says otherwise.",
        epilog="example: codecvit llava web runs/stage2/model --num-images 4",
    )
    parser.add_argument("model", metavar="MODEL", help="what `codecvit llava train` saved")
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host",
        default=LOOPBACK,
        metavar="ADDRESS",
        help="listen at this address; any but a loopback one opens the page to others "
        "(default: %(default)s)",
    )
    group.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    group.add_argument(
        "--queue",
        type=int,
        default=8,
        metavar="N",
        help="most requests that wait while one is worked on (default: %(default)s)",
    )
    group.add_argument(
        "--max-upload", type=float, default=200, metavar="MB", help="default: %(default)s"
    )
    group.add_argument(
        "--max-seconds",
        type=float,
        default=600,
        metavar="N",
        help="longest video (default: %(default)s)",
    )
    add_chat_arguments(parser)
    return parser
