"""Serve the edited LLM over HTTP until Ctrl-C or SIGTERM: `python jobs/serve.py --editor … --table …`."""

import os
import signal
import threading

import ray

from jobs._cli import run
from recipe_ray.distributed.cluster import connect
from serving.keys import check_exposure
from serving.local import bindable_port, serving
from serving.settings import ServerArgs


def main(args: ServerArgs) -> None:
    """Check, start, say where it listens, wait for Ctrl-C or SIGTERM, and shut down."""
    # Before anything is started: the commonest troubles.
    check_exposure(args.host, args.keys, open=args.open)
    bindable_port(args.host, args.port)
    connect(num_cpus=max(os.cpu_count() or 1, args.app_args().num_cpus))  # Serve counts cores, a small machine has few
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `docker stop` and `ray job stop` end it as Ctrl-C does
    try:
        with serving(args.app_args(), host=args.host, port=args.port) as url:
            print(f"serving {url}/v1 (OpenAI's API) and {url}/console; {how_to_stop()}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        ray.shutdown()


def how_to_stop() -> str:
    """Name what ends this process: what a script's shell starts with `&` is to ignore Ctrl-C (SIGINT), and does."""
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return f"`kill {os.getpid()}` stops it" if ignored else "Ctrl-C stops it"


if __name__ == "__main__":
    run(main, ServerArgs)
