"""Artifacts are written whole or not at all, and verified by the plain libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tutelage.engine.kernels import as_the_libraries_compute
from tutelage.errors import RunFailed, TutelageError
from tutelage.models.loading import load_model, load_tokenizer, new_token_ids, prepare_base, resize_for
from tutelage.models.locating import Located
from tutelage.models.merging import merge
from tutelage.models.saving import save_artifact, write_folder
from tutelage.models.verifying import reference_of, verify
from tutelage.plugins import host
from tutelage.recipe import Tokens

CHAT = [{"role": "user", "content": "the cat sat"}, {"role": "assistant", "content": "on the mat"}]


def adapter_of(kind: str, **settings):
    plugin = host().get("adapter", kind, "")
    return plugin(plugin.Config(**settings))


class Trained:
    """A tiny model trained for two steps and saved, as the engine does it."""

    def __init__(
        self, folder: Path, out: Path, kind="lora", *, add=(), dtype=torch.float32, save_dtype=None, **settings
    ):
        self.adapter = adapter_of(kind, **settings)
        tokens = Tokens(add=list(add))
        located = Located("model", str(folder))
        self.tokenizer = load_tokenizer(located, tokens, folder)
        if self.adapter.artifact == "adapter":
            located = prepare_base(located, self.tokenizer, out / "base")
        loading = self.adapter.loading(dtype)
        base = load_model(located, dtype=dtype, **loading)
        resize_for(base, self.tokenizer)
        torch.manual_seed(1)
        self.model = self.adapter.attach(base, self.tokenizer, new_token_ids(self.tokenizer, tokens))
        self.ids = torch.tensor([self.tokenizer("".join(add) + "the cat sat on the mat")["input_ids"]])
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            tiny.step(self.model, self.ids)
        whole = self.adapter.artifact == "model"
        as_the_libraries_compute(self.model)
        self.reference = reference_of(
            self.model,
            self.tokenizer,
            CHAT,
            dtype=torch.float32 if whole else dtype,
            loading=loading,
            save_dtype=save_dtype,
        )
        self.folder = save_artifact(
            self.adapter,
            self.model,
            self.tokenizer,
            out / self.adapter.artifact,
            base_path=located.path,
            card="# A card\n",
            save_dtype=save_dtype,
        )


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "prompt"])
def test_what_was_saved_verifies(kind, family, tiny_model, tmp_path):
    trained = Trained(tiny_model(family), tmp_path, kind)
    found = verify(trained.folder, trained.reference)
    assert found.largest_difference <= 1e-4
    assert found.tensors == len(trained.reference.tensors) > 0
    assert found.stops is None
    assert (trained.folder / "README.md").read_text() == "# A card\n"


@pytest.mark.parametrize("kind", ["full", "lora", "qlora", "prompt"])
def test_bfloat16_verifies_too(kind, tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path, kind, dtype=torch.bfloat16, save_dtype=torch.bfloat16)
    found = verify(trained.folder, trained.reference)
    assert found.largest_difference <= found.tolerance
    if kind == "full":
        assert found.largest_difference > 0  # rounding to bfloat16 is real


def test_new_tokens_verify(tiny_model, tmp_path):
    trained = Trained(tiny_model("gpt2"), tmp_path, add=["<json>"])
    assert verify(trained.folder, trained.reference).largest_difference <= 1e-4


def altered(folder: Path, file: str, name_part: str) -> None:
    """Change one number of one tensor by a little."""
    weights = load_file(folder / file)
    name = next(name for name in weights if name_part in name)
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, folder / file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "file", "part"),
    [
        ("lora", "adapter_model.safetensors", "lora_B"),
        ("full", "model.safetensors", "layernorm"),
        ("prompt", "adapter_model.safetensors", "prompt"),
    ],
)
def test_one_changed_number_on_disk_fails_loudly(kind, file, part, tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path, kind)
    altered(trained.folder, file, part)
    with pytest.raises(
        RunFailed, match=rf"1 of its \d+ tensors, read back from disk, differ from those trained: .*{part}"
    ):
        verify(trained.folder, trained.reference)


def test_a_tensor_that_was_not_saved_fails_loudly(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    weights = load_file(trained.folder / "adapter_model.safetensors")
    weights.pop(next(name for name in weights if "lora_B" in name))
    save_file(weights, trained.folder / "adapter_model.safetensors")
    with pytest.raises(RunFailed, match="1 of its 28 tensors"):
        verify(trained.folder, trained.reference)


def test_another_base_fails_loudly_with_the_difference(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    other = shutil.copytree(tiny_model("llama-tied"), tmp_path / "other")
    altered(other, "model.safetensors", "embed_tokens")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] *= 1.1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((trained.folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(other)
    (trained.folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(RunFailed, match=r"its logits differ by \d.* at token \d+ \(allowed: "):
        verify(trained.folder, trained.reference)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"), "its chat template, read back"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "can't be read back|turns the same prompt into other"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"{}"), "can't be read back"),
    ],
)
def test_other_damage_fails_loudly(change, sentence, tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    change(trained.folder)
    with pytest.raises(RunFailed, match=sentence):
        verify(trained.folder, trained.reference)


def test_whether_generation_stops_is_tried_and_said(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path, "full")
    ids = trained.ids[0].tolist()
    turn_end = trained.tokenizer.convert_tokens_to_ids("<|im_end|>")
    taught = torch.tensor([[*ids, turn_end, turn_end]])
    tiny.step(trained.model, taught, steps=60, rate=0.01)
    reference = reference_of(trained.model, trained.tokenizer, ids, dtype=torch.float32)
    folder = save_artifact(trained.adapter, trained.model, trained.tokenizer, trained.folder, base_path="")
    found = verify(folder, reference, stop_prompt=ids[:3], stop_within=20)
    assert (found.stops, found.new_tokens) == (True, len(ids) - 3 + 1)
    found = verify(folder, reference, stop_prompt=ids[:3], stop_within=2)
    assert (found.stops, found.new_tokens) == (False, 2)


def test_the_artifact_carries_what_generation_needs(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    ends = sorted(trained.tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"]))
    assert GenerationConfig.from_pretrained(trained.folder).eos_token_id == ends
    again = AutoTokenizer.from_pretrained(trained.folder)
    assert again.apply_chat_template(CHAT, tokenize=False) == trained.tokenizer.apply_chat_template(
        CHAT, tokenize=False
    )


def test_saving_again_replaces_the_folder(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    (trained.folder / "left-over").touch()
    save_artifact(trained.adapter, trained.model, trained.tokenizer, trained.folder, base_path="")
    assert not (trained.folder / "left-over").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_failed_save_leaves_what_was_there(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()

    def half_written() -> None:
        with write_folder(target) as folder:
            (folder / "new").touch()
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        half_written()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in target.iterdir()] == ["old"]


# Merging.


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("add", [(), ("<json>",)])
def test_a_merged_model_equals_base_and_adapter(add, family, tiny_model, tmp_path):
    trained = Trained(tiny_model(family), tmp_path, add=add)
    out = merge(trained.folder, tmp_path / "merged", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.allclose(tiny.logits(merged, trained.ids), tiny.logits(trained.model, trained.ids), atol=1e-4)
    assert "lora" not in str(load_file(out / "model.safetensors").keys())
    again = AutoTokenizer.from_pretrained(out)
    assert again("".join(add) + "the cat sat on the mat")["input_ids"] == trained.ids[0].tolist()
    tied = family in ("llama-tied", "gpt2")
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("settings", [{"dora": True}, {"rslora": True}, {"targets": ["lm_head", "embed_tokens"]}])
def test_variants_merge(settings, tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-untied"), tmp_path, **settings)
    merged = AutoModelForCausalLM.from_pretrained(merge(trained.folder, tmp_path / "merged"), dtype=torch.float32)
    assert torch.allclose(tiny.logits(merged, trained.ids), tiny.logits(trained.model, trained.ids), atol=1e-4)


def test_weights_are_merged_in_float32_and_rounded_once(tiny_model, tmp_path):
    folder = tiny_model("llama-tied", dtype=torch.bfloat16)
    trained = Trained(folder, tmp_path, dtype=torch.bfloat16)
    out = merge(trained.folder, tmp_path / "merged")
    written = load_file(out / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    learnt = load_file(trained.folder / "adapter_model.safetensors")
    up = "base_model.model.model.layers.0.mlp.up_proj.lora_{}.weight"
    base = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    exact = base.float() + 2.0 * learnt[up.format("B")] @ learnt[up.format("A")]
    assert written.dtype == torch.bfloat16
    assert torch.equal(written, exact.bfloat16())


def test_a_quantised_adapter_merges_into_unquantised_weights(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path, "qlora")
    out = merge(trained.folder, tmp_path / "merged")
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.float32}
    loaded = AutoPeftModelForCausalLM.from_pretrained(trained.folder, dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert torch.allclose(tiny.logits(merged, trained.ids), tiny.logits(loaded, trained.ids), atol=1e-4)


def test_merging_into_four_bits_happens_when_asked(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    out = merge(trained.folder, tmp_path / "merged", quantize=True)
    assert torch.uint8 in {tensor.dtype for tensor in load_file(out / "model.safetensors").values()}
    assert type(AutoModelForCausalLM.from_pretrained(out).model.layers[0].mlp.up_proj).__name__ == "Linear4bit"


def test_an_adapter_of_a_quantised_model_merges_unquantised(tiny_model, tmp_path):
    first = Trained(tiny_model("llama-tied"), tmp_path / "first")
    small = merge(first.folder, tmp_path / "small", quantize=True)
    second = Trained(small, tmp_path / "second")
    out = merge(second.folder, tmp_path / "merged", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert type(merged.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert torch.allclose(tiny.logits(merged, second.ids), tiny.logits(second.model, second.ids), atol=1e-2)


def test_a_soft_prompt_can_not_be_merged(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path, "prompt")
    with pytest.raises(TutelageError, match="a soft prompt stands before the input"):
        merge(trained.folder, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merging_does_not_overwrite(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    with pytest.raises(TutelageError, match="exists already"):
        merge(trained.folder, tmp_path)


def test_an_adapter_whose_base_is_gone_or_is_another_gets_a_sentence(tiny_model, tmp_path):
    trained = Trained(tiny_model("llama-tied"), tmp_path)
    path = trained.folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"base_model_name_or_path": "/nowhere"}))
    with pytest.raises(TutelageError, match=r"/nowhere, the base model of the adapter .*, is gone"):
        merge(trained.folder, tmp_path / "merged")
    path.write_text(json.dumps(settings | {"base_model_name_or_path": str(tiny_model("gpt2"))}))
    with pytest.raises(TutelageError, match="does not fit its base"):
        merge(trained.folder, tmp_path / "merged")


@pytest.mark.parametrize("kind", ["lora", "qlora", "full"])
def test_an_adapter_is_the_base_of_further_training(kind, tiny_model, tmp_path):
    first = Trained(tiny_model("llama-tied"), tmp_path / "first", add=["<json>"])
    start = load_model(Located("adapter", str(first.folder)), dtype=torch.float32)
    assert torch.allclose(tiny.logits(start, first.ids), tiny.logits(first.model, first.ids), atol=1e-4)
    adapter = adapter_of(kind)
    located = Located("adapter", str(first.folder))
    tokenizer = load_tokenizer(located, Tokens(), tmp_path)
    if adapter.artifact == "adapter":
        located = prepare_base(located, tokenizer, tmp_path / "base")
    loading = adapter.loading(torch.float32)
    torch.manual_seed(0)
    model = adapter.attach(load_model(located, dtype=torch.float32, **loading), tokenizer)
    tiny.step(model, first.ids)
    reference = reference_of(model, tokenizer, CHAT, dtype=torch.float32, loading=loading)
    folder = save_artifact(adapter, model, tokenizer, tmp_path / "second", base_path=located.path)
    assert verify(folder, reference).largest_difference <= 1e-4


def test_an_adapter_folder_loads_quantised_with_its_update_inside(tiny_model, tmp_path):
    first = Trained(tiny_model("llama-tied"), tmp_path)
    quantization = adapter_of("qlora").loading(torch.float32)
    merged = merge(first.folder, tmp_path / "merged")
    expected = load_model(Located("model", str(merged)), dtype=torch.float32, **quantization)
    found = load_model(Located("adapter", str(first.folder)), dtype=torch.float32, **quantization)
    assert torch.allclose(tiny.logits(found, first.ids), tiny.logits(expected, first.ids), atol=1e-4)
