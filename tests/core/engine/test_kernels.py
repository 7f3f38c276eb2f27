"""What the engine computes in fewer passes is what the libraries compute plainly: losses and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from tutelage.data.batches import Batch
from tutelage.engine.attention import SEGMENTS, choose_packed_attention
from tutelage.engine.forward import learnt_logits, learnt_loss, token_log_probabilities
from tutelage.engine.kernels import as_the_libraries_compute
from tutelage.engine.kernels.blocks import fuse_blocks, rms_norm
from tutelage.engine.kernels.likelihood import summed_losses, token_losses
from tutelage.engine.kernels.low_rank import fuse_updates
from tutelage.engine.kernels.segments import short_segment_attention

ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"The largest difference allowed, as a share of the largest value."


def near(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    assert found.shape == expected.shape
    found, expected = found.detach().float(), expected.detach().float()
    assert found.numel() == 0 or float((found - expected).abs().max()) <= share * max(1e-3, float(expected.abs().max()))


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> list[torch.Tensor]:
    return list(
        torch.autograd.grad((output.float() * torch.linspace(0.1, 1, output.numel()).view(output.shape)).sum(), inputs)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5, 300])
def test_short_segments_attend_as_sdpa_does_to_each(dtype, window):
    torch.manual_seed(0)
    bounds = [0, 3, 40, 41, 341, 400]
    query, key, value = (torch.randn(heads, 400, 16, dtype=dtype, requires_grad=True) for heads in (6, 2, 2))
    found = short_segment_attention(query, key, value, bounds, 0.3, window)
    expected = []
    exact = [each.detach().float().requires_grad_() for each in (query, key, value)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (distance >= 0) & (distance < (window or 1000))
        parts = [each[None, :, start:end] for each in exact]
        expected.append(F.scaled_dot_product_attention(*parts, attn_mask=seen, scale=0.3, enable_gqa=True)[0])
    whole = torch.cat(expected, dim=1)
    near(found, whole, ROUNDING[dtype])
    for ours, theirs in zip(gradients(found, query, key, value), gradients(whole, *exact), strict=True):
        near(ours, theirs, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("temperature", "vocabulary"), [(1.0, 300), (0.7, 300), (0.7, 2**17)])  # the last in chunks
def test_token_losses_are_cross_entropies(dtype, temperature, vocabulary):
    torch.manual_seed(0)
    hidden = torch.randn(80, 24, dtype=dtype, requires_grad=True)
    weight, bias, targets = (
        torch.randn(vocabulary, 24, dtype=dtype),
        torch.randn(vocabulary, dtype=dtype),
        torch.randint(0, vocabulary, (80,)),
    )
    losses, entropies = token_losses(hidden, weight, bias, targets, temperature, entropy=True)
    exact = hidden.detach().float().requires_grad_()
    logits = F.linear(exact, weight.float(), bias.float()) / temperature
    near(losses, F.cross_entropy(logits, targets, reduction="none"), ROUNDING[dtype])
    near(entropies, torch.distributions.Categorical(logits=logits).entropy(), ROUNDING[dtype])
    assert not entropies.requires_grad
    (ours,) = gradients(losses, hidden)
    (theirs,) = gradients(F.cross_entropy(logits, targets, reduction="none"), exact)
    near(ours, theirs, ROUNDING[dtype])


@pytest.mark.parametrize("rows", [0, 1, 150])
def test_summed_losses_teach_the_output_layer_too(rows):
    torch.manual_seed(0)
    vocabulary = 2**18  # 128 rows at a time
    hidden, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    targets = torch.randint(0, vocabulary, (rows,))
    found, expected = (
        summed_losses(hidden, weight, targets),
        F.cross_entropy(hidden @ weight.t(), targets, reduction="sum"),
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    for ours, theirs in zip(gradients(2 * found, hidden, weight), gradients(2 * expected, hidden, weight), strict=True):
        near(ours, theirs, 1e-4)  # sums over a large vocabulary, in another order


def test_a_token_that_is_all_but_impossible_has_a_finite_loss_and_gradient():
    hidden = torch.tensor([[300.0]], requires_grad=True)
    losses, entropies = token_losses(hidden, torch.tensor([[1.0], [-1.0]]), None, torch.tensor([1]), entropy=True)
    assert (float(losses), float(entropies)) == (600.0, 0.0)
    assert gradients(losses, hidden)[0].isfinite().all()


def adapted(model, **settings):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    made = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **settings))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return made.train()


def packed(vocabulary: int) -> Batch:
    torch.manual_seed(2)
    bounds = torch.tensor([0, 9, 30, 42], dtype=torch.int32)
    ids = torch.randint(0, vocabulary, (1, 42))
    positions = torch.cat([torch.arange(9), torch.arange(21), torch.arange(12)])[None]
    targets = torch.rand(1, 42) < 0.6
    targets[0, bounds[:-1].long()] = False
    return Batch(ids, positions, targets, bounds, None, sequences=3)


FAMILIES = ["llama-tied", "qwen2", "gemma2", "phi", "gpt2"]


@pytest.mark.parametrize("family", FAMILIES)
def test_updates_and_losses_equal_peft_and_transformers(tiny_model, family):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    if choose_packed_attention(base, base.config.vocab_size) is None:
        base.set_attn_implementation("eager")
    batch = packed(base.config.vocab_size)
    if base.config._attn_implementation != SEGMENTS and family != "gemma2":
        pytest.fail(f"{family} is not packed by segments")
    plain, fused = adapted(base), fuse_updates(adapted(base))
    logits, targets = learnt_logits(plain, batch)
    expected = F.cross_entropy(logits.float(), targets, reduction="sum")
    expected.backward()
    found = learnt_loss(fused, batch)
    found.backward()
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    learnt = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert max(float(gradient.abs().max()) for gradient in learnt.values()) > 1e-3
    for name, parameter in fused.named_parameters():
        if parameter.requires_grad:
            near(parameter.grad, learnt[name], 1e-4)
    log_probs = token_log_probabilities(fused, batch, 0.9)[0]
    near(log_probs, torch.log_softmax(logits / 0.9, -1).gather(1, targets[:, None])[:, 0], 1e-5)


def test_undone_updates_are_pefts_to_the_bit(tiny_model):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama-tied"), dtype=torch.bfloat16)
    ids = torch.arange(20)[None]
    plain, fused = adapted(base), fuse_updates(adapted(base))
    assert not torch.equal(fused(ids).logits, plain(ids).logits)  # computed otherwise, else this shows nothing
    as_the_libraries_compute(fused)
    assert torch.equal(fused(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_no_plain_update_goes_pefts_way(tiny_model, settings):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model("llama-tied"), dtype=torch.float32)
    plain, fused = adapted(base, **settings).eval(), fuse_updates(adapted(base, **settings)).eval()
    ids = torch.arange(20)[None]
    torch.testing.assert_close(fused(ids).logits, plain(ids).logits)
    with plain.disable_adapter(), fused.disable_adapter():
        assert torch.equal(fused(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_blocks_equal_transformers(tiny_model, family):
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_model(family), dtype=torch.float32)
    for name, parameter in plain.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    fused = fuse_blocks(copy.deepcopy(plain))
    assert any("forward" in vars(module) for module in fused.modules()) == (family != "gpt2")  # it has no such norms
    ids = torch.arange(60).view(2, 30)
    expected, found = plain(ids).logits, fused(ids).logits
    near(found, expected, 1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        near(parameter.grad, theirs[name].grad, 1e-4)
    as_the_libraries_compute(fused)
    assert torch.equal(fused(ids).logits, expected)


def test_a_norm_in_bfloat16_is_as_exact_as_transformers():
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    torch.manual_seed(0)
    norm = LlamaRMSNorm(64, eps=1e-5)
    norm.weight.data = torch.randn(64)
    exact_input = torch.randn(20, 64, requires_grad=True)
    weights = torch.randn(20, 64)
    (expected,) = torch.autograd.grad((norm(exact_input) * weights).sum(), exact_input)
    half = norm.to(torch.bfloat16)
    errors = []
    for made in (half, lambda x: rms_norm(x, half.weight, 1e-5)):
        given = exact_input.detach().bfloat16().requires_grad_()
        (found,) = torch.autograd.grad((made(given) * weights.bfloat16()).sum(), given)
        errors.append(float((found.float() - expected).norm() / expected.norm()))
    assert errors[1] <= 1.2 * errors[0]


def test_what_only_looks_like_a_norm_or_a_gate_is_left_alone():
    class Norm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return self.weight * x / (x.abs().mean(-1, keepdim=True) + self.eps)

    class Gate(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(8, 8) for _ in range(3))
            self.act_fn = torch.nn.SiLU()

        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) + x)

    model = fuse_blocks(torch.nn.Sequential(Norm(), Gate(), torch.nn.LayerNorm(8)))
    assert not any("forward" in vars(module) for module in model.modules())
