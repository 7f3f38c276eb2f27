"""What a setting means beyond its type, as metadata of its field.

A field that names a model, data or a file is marked, `Annotated[str, MODEL, Meta(description=…)]` (or a list of such),
and so is one that asks for plugins: `Annotated[dict[str, Any], asks_for("phase")]`. `tutelage.references` follows the
marks: what a recipe names is brought to a server with it, and confined there to what its owner may read. A plugin whose
settings name files without a mark works on one's own machine, but not there.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Meta

Kind = Literal["model", "data", "file", "output"]

MODEL = Meta(extra={"reference": "model"})
"A model: a folder, a `.gguf` file, `stage:NAME`, `SOURCE:NAME` or a hub name."
DATA = Meta(extra={"reference": "data"})
"Data: a file, a folder, `stage:NAME` or `hub:OWNER/NAME`."
FILE = Meta(extra={"reference": "file"})
"A file that is read."
OUTPUT = Meta(extra={"reference": "output"})
"A file or folder that is written."


def asks_for(kind: str) -> Meta:
    """Asks for plugins of a kind: `NAME`, `{kind: NAME, …}`, or a list of such."""
    return Meta(extra={"plugin": kind})
