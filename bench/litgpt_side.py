"""LitGPT's side, in an environment of its own: `PYTHON bench/litgpt_side.py REQUEST.json` trains with LoRA.

A request names the model's folder, the data (JSONL with messages), a folder to work in and the rows of a step. Needs
nothing but LitGPT, whose dependencies don't go together with TRL's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Answer the request; tells tokens (without padding) and the time of every step."""
    import lightning
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import JSON
    from litgpt.finetune import lora

    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    work = Path(request["out"])
    count, batch = request["rows_per_step"], min(4, request["rows_per_step"])
    known = {"tokens": 0}

    def tell(_: Any, metrics: dict[str, Any], **__: Any) -> None:
        """Instead of a line in a file, at its end: a line of JSON, at once."""
        if "tokens" in metrics:
            amount = int(metrics["tokens"])
            print(json.dumps({"amount": amount - known["tokens"]}), flush=True)
            known["tokens"] = amount

    lightning.Fabric.log_dict = tell  # type: ignore[method-assign]
    lora.save_hyperparameters = lambda *_, **__: None  # it would read them from this program's arguments
    lora.merge_lora = lambda *_, **__: None  # it needs those, and the others leave an adapter, too
    lora.setup(
        checkpoint_dir=_converted(Path(request["model"]), work / "checkpoint"),
        out_dir=work / "tuned",
        precision="bf16-true",
        lora_r=request["rank"],
        lora_alpha=request["alpha"],
        lora_dropout=0.0,
        lora_key=True,
        lora_projection=True,
        lora_mlp=True,
        data=JSON(json_path=_data(Path(request["data"]), work / "rows.json"), val_split_fraction=0.01),
        train=TrainArgs(
            save_interval=10**6,
            log_interval=max(1, count // batch),
            global_batch_size=max(1, count // batch) * batch,
            micro_batch_size=batch,
            lr_warmup_steps=1,
            epochs=1,
            max_seq_length=request["length"],
        ),
        eval=EvalArgs(interval=10**6, max_new_tokens=1, max_iters=1, initial_validation=False, final_validation=False),
        seed=request["seed"],
    )


def _converted(model: Path, folder: Path) -> Path:
    """The model in LitGPT's own format."""
    from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint

    folder.mkdir(parents=True)
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    convert_hf_checkpoint(folder, model_name="SmolLM2-135M-Instruct")
    return folder


def _data(source: Path, target: Path) -> Path:
    """Rows as LitGPT wants them: an instruction and an output."""
    rows = [json.loads(line)["messages"] for line in source.read_text(encoding="utf-8").splitlines()]
    made = [
        {"instruction": "\n\n".join(turn["content"] for turn in row[:-1]), "output": row[-1]["content"]} for row in rows
    ]
    target.write_text(json.dumps(made), encoding="utf-8")
    return target


if __name__ == "__main__":
    main()
