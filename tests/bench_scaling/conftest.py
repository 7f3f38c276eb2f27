"""The benches are no package that is installed: they are run, and imported, from the root."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
