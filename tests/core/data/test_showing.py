"""What `data show` prints: the text as the model sees it, and what of it is learnt."""

from __future__ import annotations

import io

from rich.console import Console
from toy_tokenizers import CHATML, toy

from tutelage.data.rendering import Renderer
from tutelage.data.showing import as_json, print_examples
from tutelage.formats import Continuation

TOKENIZER = toy(CHATML)
EXAMPLE = ("x.jsonl line 3", Renderer(TOKENIZER).render(Continuation("[bold]Hi[/bold]", "Hello :smile: ünd 漢字")))


def printed(**options) -> str:
    file = io.StringIO()
    print_examples([EXAMPLE], TOKENIZER, Console(file=file, width=100, **options))
    return file.getvalue()


def test_without_colour_brackets_tell_what_is_learnt():
    text = printed(color_system=None)
    assert "x.jsonl line 3: " in text
    assert f"{len(EXAMPLE[1]):,} tokens, {EXAMPLE[1].weight:,} learnt" in text
    assert (
        "<|im_start|>user\n[bold]Hi[/bold]<|im_end|>\n<|im_start|>assistant\n⟦Hello :smile: ünd 漢字<|im_end|>⟧\n"
        in text
    )


def test_on_a_terminal_colour_does():
    text = printed(color_system="standard", force_terminal=True)
    assert "⟦" not in text
    assert "\x1b[1;32mHello :smile: ünd 漢字<|im_end|>" in text
    assert "\x1b[2m<|im_start|>user" in text


def test_a_script_gets_the_same():
    place, tokens = EXAMPLE
    (shown,) = as_json([EXAMPLE], TOKENIZER)
    assert shown["place"] == place
    assert shown["ids"] == tokens.ids.tolist()
    assert shown["learn"] == tokens.learn.tolist()
    assert shown["tokens"] == len(tokens)
    assert shown["learnt"] == tokens.weight
    assert [piece["text"] for piece in shown["segments"] if piece["learnt"]] == ["Hello :smile: ünd 漢字<|im_end|>"]
    assert "".join(piece["text"] for piece in shown["segments"]) == TOKENIZER.decode(tokens.ids)
