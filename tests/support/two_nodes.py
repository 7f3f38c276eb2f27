"""`python two_nodes.py COMMAND…`: runs the command twice at once, as two machines would; one's failure ends both."""

from __future__ import annotations

import signal
import subprocess
import sys
import time


def main() -> int:
    nodes = [subprocess.Popen(sys.argv[1:]) for _ in range(2)]
    signal.signal(signal.SIGTERM, lambda *_: [node.terminate() for node in nodes])
    while True:
        codes = [node.poll() for node in nodes]
        if all(code is not None for code in codes):
            return max(abs(code) for code in codes)
        if any(codes):
            for node in nodes:
                node.terminate()
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
