"""The model's folder, and how long rows are in its tokens: found in a process of its own; the bench stays small.

`python -m bench.fetching REQUEST.json`: a request names the model and a file of conversations.
"""

from __future__ import annotations

import json
from pathlib import Path

from bench import processes
from bench.scale import LENGTH


def main() -> None:
    """Fetch the model, if need be; tell its folder, and tokens per row, at most LENGTH."""
    from transformers import AutoTokenizer

    from tutelage.models.locating import fetch, locate
    from tutelage.plugins import host

    request = processes.request()
    path = str(fetch(locate(request["model"], Path.cwd(), "model", host()), "model").path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    rows = json.loads(Path(request["rows"]).read_text(encoding="utf-8"))
    texts = [str(tokenizer.apply_chat_template(row, tokenize=False)) for row in rows]
    counts = [min(LENGTH, len(ids)) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    processes.tell(path=path, counts=counts)


if __name__ == "__main__":
    main()
