"""A GGUF file becomes a plain Hugging Face folder, once."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models as tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tutelage.errors import TutelageError
from tutelage.models.locating import Located, fetch, ready

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection as GGUF's Llama keeps them: rotary pairs side by side."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(model_folder: Path, file: Path) -> None:
    """Write a tiny tied Llama as float32 GGUF with its byte-level BPE and chat template."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = tiny.tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    merges = [" ".join(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token.startswith("<|") else 1 for token, _ in vocabulary])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(0)
    writer.add_chat_template(tiny.TEMPLATE)
    state = {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", state["model.norm.weight"])
    for layer in range(config.num_hidden_layers):
        for short, long in NAMES.items():
            weight = state[f"model.layers.{layer}.{long}.weight"]
            if short == "attn_q":
                weight = interleaved(weight, config.num_attention_heads)
            if short == "attn_k":
                weight = interleaved(weight, config.num_key_value_heads)
            writer.add_tensor(f"blk.{layer}.{short}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_the_model_that_it_was(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    folder = tiny_model("llama-tied", dtype=torch.bfloat16)
    write_gguf(folder, tmp_path / "m.gguf")
    gguf_file = Located("gguf", str(tmp_path / "m.gguf"))
    assert ready(gguf_file) is None
    converted = fetch(gguf_file)
    assert converted.kind == "model"
    assert ready(gguf_file) == converted == fetch(gguf_file)
    expected = load_file(folder / "model.safetensors")
    found = load_file(Path(converted.path) / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    ids = tiny.some_ids()
    plain = AutoModelForCausalLM.from_pretrained(converted.path, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.allclose(tiny.logits(plain, ids), tiny.logits(original, ids), atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(converted.path)
    assert tokenizer(tiny.TEXTS)["input_ids"] == tiny.tokenizer()(tiny.TEXTS)["input_ids"]
    assert tokenizer.chat_template == tiny.TEMPLATE
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert set(GenerationConfig.from_pretrained(converted.path).eos_token_id) == set(ends)


def test_a_broken_file_gets_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(TutelageError, match=r"model: .*m\.gguf can't be read: "):
        fetch(Located("gguf", str(tmp_path / "m.gguf")))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix != ".lock" and path.is_file()]
