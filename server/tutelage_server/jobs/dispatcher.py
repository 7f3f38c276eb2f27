"""`python -m tutelage_server.jobs.dispatcher`: the process that dispatches jobs.

It ends when it is asked to (SIGTERM, which the kernel sends when the server dies that started it), and leaves attempts
as they are: the next dispatcher finds them.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from pathlib import Path

from tutelage.errors import TutelageError
from tutelage_server.jobs.dispatching import Dispatcher
from tutelage_server.jobs.launching import make_launchers
from tutelage_server.jobs.tending import Pace
from tutelage_server.settings import load_settings
from tutelage_server.store.store import Store


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tutelage_server.jobs.dispatcher", description=__doc__)
    parser.add_argument("--settings", type=Path, help="The server's settings file; else TUTELAGE_SERVER_… variables.")
    parser.add_argument("--interval", type=float, default=0.5, help="Seconds between two looks at the jobs.")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        settings = load_settings(options.settings)
        store = Store(settings.database_url)
        launchers = make_launchers(settings)
    except TutelageError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return 2
    Dispatcher(store, settings, launchers, pace=Pace(interval=options.interval)).run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
