"""Serves a web page and an API that estimate the ages of faces in photographs, on this machine.

    python -m lae_jax.serve                                           # then open http://127.0.0.1:8000/
    python -m lae_jax.serve --run runs/classify
    curl -F images=@photo.jpg -F images=@other.jpg http://127.0.0.1:8000/v1/predict

Photographs are processed in memory: nothing is stored and nothing is sent anywhere. On SIGTERM or Ctrl-C the server
answers the requests in progress, cuts off those that take too long (--stop-seconds), and exits with status 0. A second
signal ends it at once. On SIGHUP it loads --run again and changes the model between two batches. It needs the extra:
pip install 'lae-jax[serve]'
"""

import argparse
import ipaddress
import logging
import os

from lae_jax import serve
from lae_jax.faces import MAX_PIXELS, search
from lae_jax.runs import preflight
from lae_jax.runtime import flags, start
from lae_jax.runtime.errors import InputError
from lae_jax.runtime.model_file import builtin
from lae_jax.serve.operating import api_key, hangup, log_lines

logger = logging.getLogger("lae_jax")

_PACKAGES = ("fastapi", "fastapi_offline", "prometheus_client", "python_multipart", "uvicorn")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads and checks the flags (`argv`, or the command line).

    Raises:
      InputError: A flag cannot be used.
    """
    parser = flags.Parser("serve", __doc__)
    add, common = parser.add_argument, parser.add_common
    common("run", help=f"folder of a run of stage 2 or 3 or of an export, or {flags.MODEL_FILE}")
    common("step")
    common("aligned")
    common("smallest_face")
    common("rotate")
    common("allow_other_crop")
    common("flip")
    common("interval", help="share of a predicted distribution that its interval holds; for calibrated runs")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="port to listen on; 0: any free port")
    add("--allow-host", action="append", default=[], metavar="NAME", help="another host name that clients may use")
    add("--max-mb", type=float, default=32, metavar="MB", help="largest request in megabytes; more: status 413")
    add("--max-files", type=int, default=32, metavar="N", help="most images in a request; more: status 413")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="most pixels of an image; more: no age")
    add("--max-requests", type=int, default=64, metavar="N", help="most requests processed at once; more: status 429")
    add("--max-held-mb", type=float, default=512, metavar="MB", help="most megabytes of uploads held; more: status 429")
    add("--upload-seconds", type=float, default=60, metavar="S", help="most seconds for an upload; more: status 408")
    add("--max-batch", type=int, default=32, metavar="N", help="most faces in a batch of the model")
    add("--max-wait", type=float, default=5, metavar="MS", help="most milliseconds that a face waits for other faces")
    add(
        "--key-file",
        metavar="FILE",
        help=f"file of keys of clients, one per line; or {api_key.VARIABLE}",
    )
    add("--metrics", action="store_true", help="answer /metrics with numbers for Prometheus")
    add("--json-log", action="store_true", help="log JSON, an object per line, with a line for each request")
    add("--stop-seconds", type=float, default=serve.STOP_SECONDS, metavar="S", help="most seconds that a stop takes")
    common("devices")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 65536:
        raise InputError(f"--port is {args.port}: it must lie between 0 and 65535")
    if not 1 <= args.stop_seconds <= 3600:
        raise InputError(f"--stop-seconds is {args.stop_seconds:g}: it must lie between 1 and 3600")
    args.allow_host = [name.lower().removesuffix(".") for name in args.allow_host]
    for name in args.allow_host:
        # Of the names with a colon, only IPv6 addresses have several.
        if not name or "/" in name or name.count(":") == 1:
            raise InputError(f"--allow-host {name}: give only the name, without https:// and without a port")
    return args


def hosts_of(host: str, more: list[str]) -> set[str] | None:
    """Returns the host names that clients may use for the server, or None for any.

    Args:
      host: Address that the server listens on. The names are known if it is a loopback address.
      more: Names of --allow-host.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return {"localhost", "127.0.0.1", "::1", host, *more} if loopback or more else None


def main(argv: list[str] | None = None) -> None:
    """Runs the command line until the server is stopped."""
    args = vars(parse_args(argv))
    hangup.handle(lambda: None)  # what is being loaded is new anyway
    if args.pop("json_log"):
        log_lines.use()
    checked = ("interval", "max_wait", "max_mb", "max_files", "max_pixels", "max_requests", "max_held_mb")
    serve.check(**{name: args[name] for name in (*checked, "upload_seconds", "max_batch")})
    search.check(not args["aligned"], args["smallest_face"], args["rotate"])
    preflight.require_model(args["run"], args["step"], may_be_export=True)
    preflight.require_extra("serve", _PACKAGES, "serve")
    args["keys"] = api_key.given(args.pop("key_file"))
    os.environ.pop(api_key.VARIABLE, None)  # the decoders of photographs need no key
    builtin.tell(args["run"])
    start.devices(args.pop("devices"))
    from lae_jax.serve import listen

    host, port, seconds = args.pop("host"), args.pop("port"), args.pop("stop_seconds")
    hosts = hosts_of(host, args.pop("allow_host"))
    # The port comes first: loading takes a while, and an error about the port should not.
    with listen.bind(host, port) as listening:
        application = serve.application(**args, hosts=hosts)
        logger.info("%s (Ctrl-C stops it); the first answers wait until the model is warm", listen.address(listening))
        start.stay()
        listen.serve(application, listening, seconds)


if __name__ == "__main__":
    start.program(main)
