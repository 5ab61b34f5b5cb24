"""A page and an API that give the ages of faces in photographs, on this machine.

    python -m lae_jax.serve --run runs/classify                       # then open http://127.0.0.1:8000/
    curl -F images=@photo.jpg -F images=@other.jpg http://127.0.0.1:8000/v1/predict

Photographs are worked on in memory: nothing is stored and nothing is sent anywhere. SIGTERM finishes what was accepted
and ends with status 0. It needs the extra: pip install -e .[serve]
"""

import argparse
import ipaddress
import logging

from lae_jax import serve
from lae_jax.faces import MAX_PIXELS
from lae_jax.runtime import flags, layout, start
from lae_jax.runtime.errors import InputError

logger = logging.getLogger("lae_jax")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = flags.Parser("serve", __doc__)
    add, common = parser.add_argument, parser.add_common
    common("run", help="folder of a run of stage 2 or 3, or of an export")
    common("step")
    common("aligned")
    common("allow_other_crop")
    common("flip")
    common("interval", help="share of a predicted distribution that its interval holds, of a calibrated run")
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, for this machine alone)")
    add("--port", type=int, default=8000, help="port to listen on; 0: a free one")
    add("--allow-host", action="append", default=[], metavar="NAME", help="another name that clients may call it by")
    add("--max-mb", type=float, default=32, metavar="MB", help="megabytes of a request; more: 413")
    add("--max-files", type=int, default=32, metavar="N", help="images in a request; more: 413")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help="pixels of an image; more: 413")
    add("--max-requests", type=int, default=64, metavar="N", help="requests worked on at once; more: 429")
    add("--max-held-mb", type=float, default=512, metavar="MB", help="megabytes of all uploads in memory; more: 429")
    add("--upload-seconds", type=float, default=60, metavar="S", help="seconds for an upload to arrive; later: 408")
    add("--max-batch", type=int, default=32, metavar="N", help="faces that the model takes together")
    add("--max-wait", type=float, default=5, metavar="MS", help="milliseconds that a face waits for others")
    common("devices")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 65536:
        raise InputError(f"--port {args.port}: 0 to 65535")
    return args


def hosts_of(host: str, more: list[str]) -> set[str] | None:
    """Names that clients may call the server by: on this machine alone these are known, else any will do."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    return {"localhost", "127.0.0.1", "::1", host, *more} if loopback or more else None


def main(argv: list[str] | None = None) -> None:
    args = vars(parse_args(argv))
    if not layout.is_export(args["run"]):
        layout.require_run(args["run"])
    start.devices(args.pop("devices"))
    try:
        from lae_jax.serve import app, listen  # noqa: F401  (app: of serve.application)
    except ImportError as error:
        raise InputError(f"{error.name} is missing: install the extra with pip install -e .[serve]") from error
    host, port = args.pop("host"), args.pop("port")
    hosts = hosts_of(host, args.pop("allow_host"))
    # First, since a port that is taken is told at once, and loading takes a while.
    with listen.bind(host, port) as listening:
        application = serve.application(**args, hosts=hosts)
        logger.info("%s (Ctrl-C ends it); the first answers wait until the model is warm", listen.address(listening))
        listen.serve(application, listening)


if __name__ == "__main__":
    start.program(main)
