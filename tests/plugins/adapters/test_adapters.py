"""Every adapter on every architecture: it learns, saves, and the plain libraries read back the same model."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models as tiny
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from tutelage.errors import TutelageError
from tutelage.models.loading import load_model, load_tokenizer, meta_model, new_token_ids, prepare_base, resize_for
from tutelage.models.locating import Located
from tutelage.models.saving import save_artifact
from tutelage.recipe import Tokens
from tutelage_plugins.adapters import ADAPTERS, Full, Lora, PromptTuning, QLora

PLAIN = {"full": Full, "lora": Lora, "prompt": PromptTuning}


def prepared(folder: Path, adapter, *, add=(), out: Path, dtype=torch.float32):
    """What the engine does before it trains: the tokenizer, a base on disk that fits it, the model with its adapter."""
    tokens = Tokens(add=list(add))
    located = Located("model", str(folder))
    tokenizer = load_tokenizer(located, tokens, folder)
    if adapter.artifact == "adapter":
        located = prepare_base(located, tokenizer, out / "base")
    base = load_model(located, dtype=dtype, **adapter.loading(dtype))
    resize_for(base, tokenizer)
    torch.manual_seed(1)
    return adapter.attach(base, tokenizer, new_token_ids(tokenizer, tokens)), tokenizer, located


def trained_and_saved(folder: Path, adapter, out: Path, **options):
    model, tokenizer, located = prepared(folder, adapter, out=out, **options)
    ids = tiny.some_ids()
    tiny.step(model, ids)
    saved = save_artifact(adapter, model, tokenizer, out / adapter.artifact, base_path=located.path)
    return model, tokenizer, saved


def plain(saved: Path, **options):
    loader = AutoPeftModelForCausalLM if (saved / "adapter_config.json").is_file() else AutoModelForCausalLM
    return loader.from_pretrained(saved, dtype=torch.float32, **options)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", PLAIN)
def test_what_was_trained_is_what_the_plain_libraries_load(kind, family, tiny_model, tmp_path):
    model, _, saved = trained_and_saved(tiny_model(family), PLAIN[kind](), tmp_path)
    ids = tiny.some_ids()
    assert torch.allclose(tiny.logits(plain(saved), ids), tiny.logits(model, ids), atol=1e-4)
    untrained = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    assert (tiny.logits(untrained, ids) - tiny.logits(model, ids)).abs().max() > 1e-2
    assert not list(saved.glob("*.bin"))


@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_a_quantised_base_learns_and_reads_back(family, tiny_model, tmp_path):
    adapter = QLora()
    assert adapter.missing() == ""
    model, _, saved = trained_and_saved(tiny_model(family), adapter, tmp_path)
    assert any(type(module).__name__ == "Linear4bit" for module in model.modules())
    loaded = plain(saved, **adapter.loading(torch.float32)).train()  # in evaluation, bitsandbytes may round to bfloat16
    ids = tiny.some_ids()
    with torch.no_grad():
        found = loaded(input_ids=ids).logits
    assert torch.allclose(found, tiny.logits(model, ids), atol=1e-4)


def test_an_evaluation_leaves_the_gradients_of_a_quantised_model_as_they_were(tiny_model, tmp_path):
    def gradients(evaluate: bool) -> list[torch.Tensor]:
        model, _, _ = prepared(tiny_model("llama-tied"), QLora(), out=tmp_path)
        if evaluate:
            tiny.logits(model, tiny.some_ids())
        model.train()(input_ids=tiny.some_ids(), labels=tiny.some_ids()).loss.backward()
        return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]

    for with_evaluation, without in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(with_evaluation, without)


def test_qlora_says_what_is_missing(monkeypatch):
    monkeypatch.setattr("tutelage_plugins.adapters.qlora.find_spec", lambda name: None)
    assert "pip install 'tutelage[qlora]'" in QLora().missing()


@pytest.mark.parametrize("kind", PLAIN)
def test_the_adapter_loads_what_it_saved(kind, tiny_model, tmp_path):
    folder = tiny_model("llama-tied")
    model, _, saved = trained_and_saved(folder, PLAIN[kind](), tmp_path)
    base = load_model(Located("model", str(folder)), dtype=torch.float32)
    ids = tiny.some_ids()
    assert torch.allclose(tiny.logits(PLAIN[kind]().load(base, saved), ids), tiny.logits(model, ids), atol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {"r": 16, "target_modules": "all-linear"}),
        ({"rank": 4, "dora": True}, {"r": 4, "target_modules": "all-linear", "use_dora": True}),
    ],
)
def test_as_many_parameters_learn_as_with_peft(ours, theirs, family, tiny_model, tmp_path):
    model, _, _ = prepared(tiny_model(family), Lora(Lora.Config(**ours)), out=tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_model(family))
    expected = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **theirs)).get_nb_trainable_parameters()[0]
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad) == expected


def adapted_layers(model) -> list[str]:
    return [
        name.removeprefix("base_model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and "default" in module.lora_A
    ]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"targets": ["q_proj"]}, ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        ({"targets": "q_proj"}, ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]),
        ({"targets": ["q_proj"], "layers": [1]}, ["model.layers.1.self_attn.q_proj"]),
        ({"targets": r".*\.0\.mlp\.(up|down)_proj"}, ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]),
        ({"targets": ["layers.1.mlp.up_proj"]}, ["model.layers.1.mlp.up_proj"]),
    ],
)
def test_targets_and_layers_choose_what_they_say(config, expected, tiny_model, tmp_path):
    model, _, _ = prepared(tiny_model("llama-tied"), Lora(Lora.Config(**config)), out=tmp_path)
    assert adapted_layers(model) == expected


def test_layers_limit_all_linear_too(tiny_model, tmp_path):
    model, _, saved = trained_and_saved(tiny_model("llama-tied"), Lora(Lora.Config(layers=[1])), tmp_path)
    names = adapted_layers(model)
    assert len(names) == 7
    assert all(".layers.1." in name for name in names)
    assert adapted_layers(plain(saved)) == names


@pytest.mark.parametrize(
    "config",
    [
        {"rslora": True},
        {"dora": True},
        {"init": "gaussian"},
        {"init": "orthogonal"},
        {"targets": ["q_proj", "lm_head"]},
    ],
)
def test_variants_start_as_no_change_and_read_back(config, tiny_model, tmp_path):
    folder = tiny_model("llama-untied")
    fresh, _, _ = prepared(folder, Lora(Lora.Config(**config)), out=tmp_path)
    ids = tiny.some_ids()
    untouched = tiny.logits(AutoModelForCausalLM.from_pretrained(folder), ids)
    assert torch.allclose(tiny.logits(fresh, ids), untouched, atol=1e-4)
    model, _, saved = trained_and_saved(folder, Lora(Lora.Config(**config)), tmp_path)
    assert torch.allclose(tiny.logits(plain(saved), ids), tiny.logits(model, ids), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "scale"),
    [({}, 2.0), ({"rank": 4}, 8.0), ({"rslora": True}, 2.0), ({"rank": 8, "alpha": 8}, 1.0)],
)
def test_the_update_is_scaled_as_documented(config, scale, tiny_model, tmp_path):
    model, _, _ = prepared(tiny_model("llama-tied"), Lora(Lora.Config(**config)), out=tmp_path)
    assert {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")} == {scale}


@pytest.mark.parametrize("kind", ["lora", "prompt"])
def test_frozen_weights_stay_in_bfloat16_and_learnt_ones_are_float32(kind, tiny_model, tmp_path):
    model, _, _ = prepared(tiny_model("qwen2"), PLAIN[kind](), out=tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad} == {torch.bfloat16}


def test_full_learns_in_float32_and_stores_what_it_is_told(tiny_model, tmp_path):
    model, tokenizer, _ = prepared(tiny_model("llama-tied"), Full(), out=tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    saved = save_artifact(Full(), model, tokenizer, tmp_path / "model", base_path="", save_dtype=torch.bfloat16)
    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.bfloat16}
    assert "lm_head.weight" not in names  # tied: stored once
    again = AutoModelForCausalLM.from_pretrained(saved, dtype="auto")
    assert again.dtype == torch.bfloat16
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight, model.lm_head.weight.bfloat16())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}  # saving left it alone


def test_full_freezes_what_it_is_told(tiny_model, tmp_path):
    adapter = Full(Full.Config(freeze=["model.layers.0.*", "*embed_tokens*"]))
    model, _, _ = prepared(tiny_model("llama-untied"), adapter, out=tmp_path)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tiny.step(model, tiny.some_ids())
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if not name.startswith(("model.layers.0.", "model.embed_tokens"))}


@pytest.mark.parametrize("spare_rows", [0, 64])
@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_new_tokens_learn_and_survive(kind, family, spare_rows, tiny_model, tmp_path):
    folder = tiny_model(family, spare_rows=spare_rows)
    new = ["<json>", "</json>"]
    model, tokenizer, located = prepared(folder, PLAIN[kind](), add=new, out=tmp_path)
    grown = spare_rows == 0
    assert (tmp_path / "base").is_dir() == (grown and kind == "lora")
    ids = torch.tensor([tokenizer("<json>the cat sat</json> on the mat")["input_ids"]] * 2)
    assert {tokenizer.convert_tokens_to_ids(token) for token in new} <= set(ids[0].tolist())
    before = tiny.logits(model, ids)
    tiny.step(model, ids)
    assert (tiny.logits(model, ids) - before).abs().max() > 1e-2
    saved = save_artifact(PLAIN[kind](), model, tokenizer, tmp_path / "out", base_path=located.path)
    loaded = plain(saved)
    assert torch.allclose(tiny.logits(loaded, ids), tiny.logits(model, ids), atol=1e-4)
    again = AutoTokenizer.from_pretrained(saved)
    assert again("<json>the cat sat</json> on the mat")["input_ids"] == ids[0].tolist()
    if kind == "lora":
        rows = [name for name in loaded.state_dict() if "trainable_tokens_delta" in name]
        tied = family in ("llama-tied", "gpt2")
        assert len({name.split(".token_adapter")[0] for name in rows}) == (1 if tied else 2) or tied


def test_new_tokens_move_only_their_own_rows(tiny_model, tmp_path):
    folder = tiny_model("llama-untied", spare_rows=8)
    adapter = Lora(Lora.Config(targets=["q_proj"]))
    model, tokenizer, _ = prepared(folder, adapter, add=["<json>"], out=tmp_path)
    row = tokenizer.convert_tokens_to_ids("<json>")
    ids = torch.tensor([tokenizer("<json>the cat sat on <json> the mat")["input_ids"]])
    before = [
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    ]
    tiny.step(model, ids)
    after = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    for old, new in zip(before, after, strict=True):
        assert (old != new).any(dim=-1).nonzero().flatten().tolist() == [row]


def test_adapters_that_cannot_learn_new_tokens_refuse_them(tiny_model, tmp_path):
    folder = tiny_model("llama-untied", spare_rows=8)
    assert not PromptTuning.learns_tokens
    with pytest.raises(TutelageError, match=r"tokenizer\.add: prompt tuning learns no embeddings"):
        prepared(folder, PromptTuning(), add=["<json>"], out=tmp_path)
    with pytest.raises(TutelageError, match=r"adapter\.freeze: freezes the embeddings"):
        prepared(folder, Full(Full.Config(freeze=["*embed_tokens*"])), add=["<json>"], out=tmp_path)
    with pytest.raises(TutelageError, match=r"adapter\.targets: lm_head can't be adapted while new tokens learn"):
        prepared(folder, Lora(Lora.Config(targets=["lm_head"])), add=["<json>"], out=tmp_path)


def test_a_soft_prompt_starts_from_its_text(tiny_model, tmp_path):
    folder = tiny_model("llama-tied")
    adapter = PromptTuning(PromptTuning.Config(virtual_tokens=30, init="text", text="the cat sat"))
    model, tokenizer, _ = prepared(folder, adapter, out=tmp_path)
    ids = tokenizer("the cat sat")["input_ids"]
    expected = model.get_input_embeddings().weight[(ids * 30)[:30]]
    assert torch.equal(model.prompt_encoder["default"].embedding.weight, expected)
    # A prompt of those very embeddings is the same as those tokens before the input.
    text = torch.tensor([(ids * 30)[:30] + tiny.some_ids()[0].tolist()])
    plain_model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(tiny.logits(model, tiny.some_ids()[:1]), tiny.logits(plain_model, text)[:, 30:], atol=1e-4)


def test_a_random_soft_prompt_starts_from_rows_of_the_vocabulary(tiny_model, tmp_path):
    model, _, _ = prepared(tiny_model("llama-tied"), PromptTuning(), out=tmp_path)
    weight = model.prompt_encoder["default"].embedding.weight
    rows = model.get_input_embeddings().weight
    assert weight.shape == (20, 32)
    assert all((rows == row).all(dim=-1).any() for row in weight)


@pytest.mark.parametrize(
    ("adapter", "family", "sentence"),
    [
        (
            Lora(Lora.Config(targets=["q_prj"])),
            "llama-tied",
            "x.targets: no layer is called q_prj; did you mean q_proj?",
        ),
        (Lora(Lora.Config(targets=["zzz"])), "gpt2", "no layer is called zzz; known are c_attn, c_fc, c_proj"),
        (Lora(Lora.Config(targets=["norm"])), "qwen2", "norm is a Qwen2RMSNorm, which can't be adapted"),
        (
            Lora(Lora.Config(targets="foo.*")),
            "gpt2",
            "'foo.*' matches no layer; it must match a whole path such as transf",
        ),
        (Lora(Lora.Config(targets="(q")), "gpt2", "x.targets: '(q' is not a regular expression: missing )"),
        (Lora(Lora.Config(layers=[0, 7])), "gpt2", "x.layers: there is no layer 7; there are layers 0 to 1"),
        (Lora(Lora.Config(targets=["lm_head"], layers=[0])), "qwen2", "no layer is left to adapt"),
        (
            Lora(Lora.Config(rank=17)),
            "llama-tied",
            "x.rank: 17 is more than the 16 dimensions of model.layers.0.self_attn.k",
        ),
        (
            Lora(Lora.Config(targets=["lm_head"])),
            "llama-tied",
            "x.targets: lm_head: the input embeddings and the output",
        ),
        (Lora(Lora.Config(targets=["wte"])), "gpt2", "x.targets: transformer.wte: the input embeddings and the output"),
        (Lora(Lora.Config(targets=["embed_tokens"], dropout=0.1)), "qwen2", "x.dropout: can't be had on an embedding"),
        (Full(Full.Config(freeze=["model.layrs.*"])), "qwen2", "x.freeze: 'model.layrs.*' matches no parameter"),
        (Full(Full.Config(freeze=["*"])), "qwen2", "x.freeze: leaves nothing that learns"),
        (PromptTuning(PromptTuning.Config(virtual_tokens=256)), "gpt2", "x.virtual_tokens: 256 leave no room"),
    ],
)
def test_a_config_that_does_not_fit_the_model_gets_a_sentence(adapter, family, sentence, tiny_model):
    problems = adapter.check(meta_model(Located("model", str(tiny_model(family)))), "x")
    assert any(sentence in str(problem) for problem in problems), [str(problem) for problem in problems]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_defaults_fit_every_model(adapter, family, tiny_model):
    assert adapter().check(meta_model(Located("model", str(tiny_model(family)))), "x") == []


@pytest.mark.parametrize(
    ("adapter", "settings", "sentence"),
    [
        (Lora, {"targets": []}, "targets names no layer"),
        (Lora, {"layers": []}, "layers is empty"),
        (Lora, {"init": "orthogonal", "rank": 3}, "orthogonal init needs an even rank, not 3"),
        (PromptTuning, {"init": "text"}, "init is text, but text is empty"),
        (PromptTuning, {"text": "hello"}, "text is given, but init is random"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(adapter, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        adapter.Config(**settings)


def test_a_pickled_adapter_is_refused(tiny_model, tmp_path):
    base = load_model(Located("model", str(tiny_model("llama-tied"))), dtype=torch.float32)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(TutelageError, match="pickles"):
        Lora().load(base, tmp_path)
