"""Stages that learn from their own answers: one base for all models, the same results after a kill and on two processes."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from online import LETTERS, online, plain, train_and_die, write_prompts
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from tiny_models import TEXTS, tokenizer
from training import events, in_child, learnt, losses, same, train_or_resume, write_chats
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import tutelage
from tutelage.data.batches import collate
from tutelage.data.rendering import Tokens
from tutelage.engine.forward import token_log_probabilities
from tutelage.engine.prompting import encode
from tutelage.engine.rollouts import mean_with_error
from tutelage.engine.shared import REWARD, VALUE, Actors, SharedScorer
from tutelage.engine.watching import Watch
from tutelage.formats import Prompted
from tutelage.models.heads import Scorer, load_scorer_for_use
from tutelage.models.sampling import ends_of, sample, seed_of
from tutelage.plugins import host

PPO = {"kind": "ppo", "samples": 2, "inner_epochs": 2, "minibatches": 2, "kl_coefficient": 0.1}


@pytest.fixture(scope="module")
def reference(tiny_model, tmp_path_factory):
    """A PPO run that was never killed, with evaluations and adaptive control: its recipe and its folder."""
    folder = tmp_path_factory.mktemp("reference")
    data = {"train": str(write_prompts(folder / "p.jsonl", 8)), "eval_split": 0.25}
    phase = {
        **PPO,
        "kl_control": "adaptive",
        "kl_horizon": 50,
        "normalize_rewards": True,
        "held_out_rewards": ["length"],
    }
    phase["held_out_rewards"] = [{"kind": "length", "unit": "characters", "most": 4}]
    adapter = {"kind": "lora", "rank": 4}
    made = online(tiny_model("llama-tied"), data, phase, adapter=adapter, max_steps=4, checkpoint_every=2, eval_every=2)
    child = in_child(train_or_resume, made, str(folder / "run"))
    child.join()
    assert child.exitcode == 0
    return made, folder / "run"


def test_changed_prompts_are_refused_unless_allowed(tiny_model, tmp_path):
    data = write_prompts(tmp_path / "p.jsonl", 8)

    def stop(event):
        if event["event"] == "checkpoint":
            raise RuntimeError("the plug was pulled")

    with pytest.raises(RuntimeError, match="plug"):
        tutelage.train(online(tiny_model("qwen2"), data, PPO), out=tmp_path / "run", listener=stop)
    write_prompts(data, 9)
    with pytest.raises(tutelage.TutelageError, match="changed since this run began"):
        tutelage.resume(tmp_path / "run")


def critic(run):
    return load_file(run / "stages" / "tune" / "critic" / "adapter_model.safetensors")


@pytest.mark.parametrize("tokens", [3, 36])
def test_killed_in_the_middle_of_a_rollout(reference, tmp_path, tokens):
    """Killed while it draws, in the first and in a later iteration: the same weights, losses and answers."""
    made, whole = reference
    run = tmp_path / "run"
    child = in_child(train_and_die, made, str(run), tokens)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child = in_child(train_or_resume, made, str(run))
    child.join()
    assert child.exitcode == 0
    assert same(learnt(run), learnt(whole))
    assert same(critic(run), critic(whole))
    assert losses(run) == losses(whole)
    assert [event["samples"] for event in events(run, "samples")][-1] == events(whole, "samples")[-1]["samples"]
    assert events(run, "step")[-1]["kl_coefficient"] != 0.1
    assert events(run, "stage_started")[-1]["resumed_from"] == (2 if tokens > 30 else 0)


def test_two_processes_equal_one(reference, tmp_path):
    made, _ = reference
    made = {**made, "stages": [dict(made["stages"][0])]}
    made["stages"][0]["adapter"] = {"kind": "lora", "rank": 4}
    made["stages"][0]["trainer"] = {**made["stages"][0]["trainer"], "max_steps": 2}
    one = tutelage.train(made, out=tmp_path / "one").folder
    made["stages"][0]["trainer"]["devices"] = 2
    two = tutelage.train(made, out=tmp_path / "two").folder
    for kind in ("samples", "step", "eval"):
        for left, right in zip(events(one, kind), events(two, kind), strict=True):
            for name in left.keys() - {"time", "seconds", "rollout_seconds", "tokens_per_second", "memory_gib"}:
                expected = pytest.approx(left[name], abs=2e-4) if isinstance(left[name], float) else left[name]
                assert right[name] == expected, name
    for name, weight in learnt(one).items():
        torch.testing.assert_close(learnt(two)[name], weight, atol=1e-4, rtol=0)


def test_the_divergence_that_is_told_is_that_of_the_saved_policy(reference):
    """The last evaluation's KL, against that of the saved adapter and the base by plain transformers and peft."""
    made, run = reference
    settings = made["stages"][0]["phase"]
    policy = AutoPeftModelForCausalLM.from_pretrained(run / "stages/tune/adapter")
    base = AutoModelForCausalLM.from_pretrained(made["model"])
    tokens = AutoTokenizer.from_pretrained(made["model"])
    records = [(f"{row}", Prompted(prompt)) for row, prompt in enumerate(_held_out(made))]
    prompts, problems = encode(records, tokens)
    assert not problems
    seeds = [seed_of(0, 0, index, 0) for index in range(len(prompts))]
    new = settings["max_new_tokens"]
    answers = sample(policy, prompts.ids, max_new_tokens=new, seeds=seeds, batch_size=2, **ends_of(base, tokens))
    expected = []
    for prompt, answer in zip(prompts.ids, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer.ids]])
        with torch.no_grad():
            each = [
                plain(model)(input_ids=ids)
                .logits[0]
                .log_softmax(-1)[len(prompt) - 1 : -1]
                .gather(1, ids[0, len(prompt) :, None])
                for model in (policy, base)
            ]
        expected.append(float((each[0] - each[1]).sum()))
    told = events(run, "eval")[-1]
    assert told["eval_kl"] == pytest.approx(np.mean(expected), abs=1e-3)
    assert abs(told["eval_kl"]) > 1e-2
    assert told["eval_length"] == np.mean([len(answer.ids) for answer in answers])
    assert events(run, "eval")[0]["eval_kl"] == pytest.approx(0, abs=1e-5)


def _held_out(made):
    """The prompts that a quarter's split leaves out, as the stage draws them."""
    rows = [json.loads(line)["prompt"] for line in Path(made["stages"][0]["data"]["train"]).read_text().splitlines()]
    return [rows[index] for index in np.sort(np.random.default_rng([0, 1]).permutation(len(rows))[:2])]


def test_the_value_model_is_kept_and_read_by_plain_peft(reference):
    _, run = reference
    folder = run / "stages/tune/critic"
    plain_model = AutoPeftModelForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("the cat sat")["input_ids"]])
    score = float(plain_model(input_ids=ids).logits[0, 0])
    assert load_scorer_for_use(folder).score_ids([ids[0].tolist()])[0] == pytest.approx(score, abs=1e-5)
    assert abs(score) > 1e-4  # its head began as zeros


# One base


@pytest.fixture(scope="module")
def rewarded(tiny_model, tmp_path_factory):
    """A reward adapter on the tiny model, and whole reward model, as other stages would leave them."""
    from tutelage.models.heads import load_scorer, prepare_scorer_base
    from tutelage.models.locating import Located

    folder = tmp_path_factory.mktemp("rewarded")
    located = Located("model", str(tiny_model("qwen2")))
    base = prepare_scorer_base(located, folder / "base", seed=3, pad=1)
    model = AutoModelForSequenceClassification.from_pretrained(base.path)
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.2)
    adapted.save_pretrained(folder / "adapter")
    tokenizer().save_pretrained(folder / "adapter")
    whole = load_scorer(Located("model", str(tiny_model("qwen2"))), dtype=torch.float32, seed=5, pad=1)
    whole.save_pretrained(folder / "whole")
    tokenizer().save_pretrained(folder / "whole")
    return folder


def _policy(tiny_model):
    base = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2"))
    adapter = host().get("adapter", "lora", "")
    torch.manual_seed(1)
    policy = adapter(adapter.Config(rank=4)).attach(base, tokenizer())
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return policy


def _batch(packed=False):
    tokens = tokenizer()
    examples = [np.array(tokens(text)["input_ids"], dtype=np.int32) for text in TEXTS]
    store = [Tokens(ids, np.arange(len(ids)) >= 3) for ids in examples]
    return collate(store, range(len(store)), packed=packed, filler=1), store


def test_models_on_one_base_are_what_separate_ones_are(tiny_model, rewarded):
    actors = Actors(_policy(tiny_model))
    alone = _policy(tiny_model)
    actors.add_reward(rewarded / "adapter")
    scorer = Scorer(SharedScorer(actors), AutoTokenizer.from_pretrained(rewarded / "adapter"))
    separate = load_scorer_for_use(rewarded / "adapter")
    actors.add_value(scorer.model)
    actors.eval()
    batch, store = _batch()
    prompts, answers = ["the cat", "a mat", "two birds"], ["sat", "", "saw trees in a mat"]
    assert scorer.score(prompts, answers) == pytest.approx(separate.score(prompts, answers), abs=1e-5)
    with torch.no_grad():
        with actors.acting("value") as model:
            values = actors.values(model, batch)
        with actors.acting("policy") as model:
            log_probs = token_log_probabilities(model, batch)[0]
        with actors.acting("reference") as model:
            reference = token_log_probabilities(model, batch)[0]
        base = AutoModelForCausalLM.from_pretrained(tiny_model("qwen2"))
        torch.testing.assert_close(log_probs, token_log_probabilities(alone.eval(), batch)[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(reference, token_log_probabilities(base.eval(), batch)[0], atol=1e-5, rtol=0)
    prefixes = [example.ids[:end].tolist() for example in store for end in range(3, len(example.ids))]
    expected = separate.score_ids(prefixes)  # the value model began as the reward model: its scores of all prefixes
    torch.testing.assert_close(values, torch.tensor(expected), atol=1e-5, rtol=0)


def test_each_model_learns_its_own_adapter_alone(tiny_model, rewarded):
    actors = Actors(_policy(tiny_model))
    actors.add_reward(rewarded / "adapter")
    actors.add_value()
    batch, _ = _batch()
    with actors.acting("value") as model:
        actors.values(model, batch).sum().backward()
    learning = {id(parameter) for parameter in actors.learning("value")}
    for name, parameter in actors.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in learning) or "lora_A" in name, name
        assert parameter.requires_grad == (".default." in name or f".{VALUE}." in name or "value_head" in name), name
    actors.zero_grad()
    with actors.acting("policy") as model:
        token_log_probabilities(model, batch)[0].sum().backward()
    assert {name.split(".")[-2] for name, p in actors.named_parameters() if p.grad is not None} == {"default"}
    actors.drop_others()
    assert not [name for name, _ in actors.policy.named_parameters() if REWARD in name or VALUE in name]


def test_a_reward_model_without_its_head_is_an_error(tiny_model, rewarded, tmp_path):
    shutil.copytree(rewarded / "adapter", tmp_path / "headless")
    weights = load_file(tmp_path / "headless" / "adapter_model.safetensors")
    save_file(
        {name: w for name, w in weights.items() if "score" not in name},
        tmp_path / "headless" / "adapter_model.safetensors",
    )
    made = online(
        tiny_model("qwen2"), write_prompts(tmp_path / "p.jsonl"), {**PPO, "reward_model": str(tmp_path / "headless")}
    )
    with pytest.raises(tutelage.TutelageError, match=r"no head of one score \(score.weight\)"):
        tutelage.train(made, out=tmp_path / "run")


@pytest.mark.parametrize(("reward", "adapter"), [("adapter", "lora"), ("whole", "lora"), ("adapter", "full")])
def test_a_stage_with_a_reward_model(tiny_model, rewarded, tmp_path, reward, adapter):
    """An adapter of the same base is shared, whatever is not one is loaded beside it; both score alike."""
    phase = {**PPO, "rewards": [], "reward_model": str(rewarded / reward), "inner_epochs": 1}
    made = online(tiny_model("qwen2"), write_prompts(tmp_path / "p.jsonl", 4), phase, adapter=adapter, max_steps=1)
    made["stages"][0]["phase"]["show"] = 8
    made["stages"][0]["trainer"]["rehearsal"] = True
    run = tutelage.train(made, out=tmp_path / "run").folder
    shown = events(run, "samples")[0]["samples"]
    expected = load_scorer_for_use(rewarded / reward).score(
        [each["prompt"] for each in shown], [each["answer"] for each in shown]
    )
    assert [each["reward"] for each in shown] == pytest.approx(expected, abs=1e-4)
    assert (run / "stages/tune/critic").is_dir()
    held = {"policy": "adapter" if adapter == "lora" else "whole"}
    held["reward"] = "adapter" if (reward, adapter) == ("adapter", "lora") else "separate"
    told = events(run, "models")[0]
    assert {name: told[name] for name in held} == held


def test_a_whole_path_shares_one_base(tiny_model, tmp_path):
    """An adapter, a reward model on it and a policy on it: one base on disk, and in memory all are adapters of it."""
    chats = write_chats(tmp_path / "chats.jsonl", rows=8)
    pairs = [{"prompt": f"say {word}", "chosen": word, "rejected": f"{word} {word}"} for word in ("cat", "mat", "tree")]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    made = online(tiny_model("llama-tied"), write_prompts(tmp_path / "p.jsonl", 4), {**PPO, "rewards": []}, max_steps=1)
    stage = made["stages"][0]
    stage["phase"]["reward_model"] = "stage:reward"
    short = {**stage["trainer"], "max_steps": 1, "max_length": 200}
    taught = {"name": "taught", "phase": "sft", "data": {"train": str(chats)}, "trainer": {**short, "seed": 3}}
    reward = {
        "name": "reward",
        "phase": "reward_model",
        "data": {"train": str(tmp_path / "pairs.jsonl")},
        "trainer": short,
    }
    made["stages"] = [taught, reward, stage]
    run = tutelage.train(made, out=tmp_path / "run").folder
    assert events(run, "models")[0] | {"time": "", "event": "", "stage": ""} == {
        "time": "",
        "event": "",
        "stage": "",
        "policy": "adapter",
        "value": "adapter",
        "reward": "adapter",
        "reference": "adapters off",
    }
    assert len(list((run / "bases").iterdir())) == 1
    shown = events(run, "samples")[0]["samples"]
    prompts, answers = ([each[name] for each in shown] for name in ("prompt", "answer"))
    expected = load_scorer_for_use(run / "stages/reward/adapter").score(prompts, answers)
    assert [each["reward"] for each in shown] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "change", [{"activation_checkpointing": True}, {"packing": False}, {"tokens_per_micro_batch": 50}]
)
def test_how_it_is_computed_changes_nothing(tiny_model, tmp_path, change):
    data = write_prompts(tmp_path / "p.jsonl", 6)
    made = [online(tiny_model("qwen2"), data, PPO, max_steps=2, **trainer) for trainer in ({}, change)]
    one, other = (tutelage.train(each, out=tmp_path / f"{index}").folder for index, each in enumerate(made))
    assert losses(other) == pytest.approx(losses(one), abs=1e-5)
    for name, weight in learnt(one).items():
        torch.testing.assert_close(learnt(other)[name], weight, atol=1e-3, rtol=0)


def test_out_of_memory_halves_the_micro_batch_to_the_same_result(tiny_model, tmp_path, monkeypatch):
    from tutelage.engine import answering, iterations

    data = write_prompts(tmp_path / "p.jsonl", 6)
    whole = tutelage.train(online(tiny_model("qwen2"), data, PPO, max_steps=2), out=tmp_path / "whole").folder
    original = answering.token_log_probabilities

    def short_of_memory(model, batch, *arguments, **options):
        if batch.ids.numel() > 150:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return original(model, batch, *arguments, **options)

    for module in (answering, iterations):
        monkeypatch.setattr(module, "token_log_probabilities", short_of_memory)
    run = tutelage.train(online(tiny_model("qwen2"), data, PPO, max_steps=2), out=tmp_path / "run").folder
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    assert any("out of memory: micro-batches now have" in event["text"] for event in events(run, "notice"))


# What stops a run, and what is told


def test_leaving_the_reference_too_far_stops_the_run(tiny_model, tmp_path):
    made = online(tiny_model("qwen2"), write_prompts(tmp_path / "p.jsonl"), {**PPO, "kl_limit": 1e-4})
    with pytest.raises(tutelage.RunFailed, match=r"step 2: the policy is .* nats an answer .*beyond kl_limit") as error:
        tutelage.train(made, out=tmp_path / "run")
    assert error.value.exit_code == 1
    assert events(tmp_path / "run", "run_finished")[-1]["state"] == "failed"


def test_a_negative_divergence_stops_the_run(tiny_model, tmp_path, monkeypatch):
    """Answers that another model drew than the one that is trained, as a stale copy would."""
    from tutelage.engine import answering

    original = answering.sample

    def stale(model, *arguments, **options):
        with model.disable_adapter():
            return original(model, *arguments, **options)

    monkeypatch.setattr(answering, "sample", stale)
    phase = {**PPO, "samples": 8, "kl_coefficient": 0.0, "rewards": [LETTERS], "inner_epochs": 4}
    made = online(tiny_model("qwen2"), write_prompts(tmp_path / "p.jsonl"), phase, max_steps=12, learning_rate=3e-2)
    with pytest.raises(tutelage.RunFailed, match="less than 0 is impossible"):
        tutelage.train(made, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rewards": []}, "there is nothing that scores answers"),
        ({"value_init": "reward"}, "there is no reward_model"),
        ({"reward_model": "stage:nobody"}, "no earlier stage is called 'nobody'"),
        ({"max_new_tokens": 60}, r"p\.jsonl line \d+ has \d+ tokens, which with max_new_tokens 60 is more than the 64"),
        ({"rewards": ["nonsense"]}, "no reward is called 'nonsense'"),
    ],
)
def test_what_can_not_work_is_told_before(tiny_model, tmp_path, change, said):
    made = online(tiny_model("qwen2"), write_prompts(tmp_path / "p.jsonl"), {**PPO, **change})
    with pytest.raises(tutelage.TutelageError, match=said) as error:
        tutelage.train(made, out=tmp_path / "run")
    assert error.value.exit_code == 2


def test_devices_adapters_and_compilers_that_can_not_work_are_told_before(tiny_model, tmp_path):
    made = online(tiny_model("qwen2"), write_prompts(tmp_path / "p.jsonl"), PPO, adapter="prompt")
    made["stages"][0]["trainer"] |= {"devices": 2, "strategy": "fsdp", "compile": True}
    with pytest.raises(tutelage.TutelageError) as error:
        tutelage.train(made, out=tmp_path / "run")
    places = {problem.place for problem in error.value.problems}
    assert {"stages.tune.trainer.strategy", "stages.tune.trainer.compile", "stages.tune.adapter"} <= places
    made["stages"][0]["trainer"]["compile"] = "auto"  # which compiles where it can be done
    with pytest.raises(tutelage.TutelageError) as error:
        tutelage.train(made, out=tmp_path / "run")
    assert places - {problem.place for problem in error.value.problems} == {"stages.tune.trainer.compile"}


def test_too_few_long_prompts_are_dropped(tiny_model, tmp_path):
    data = write_prompts(tmp_path / "p.jsonl", 12)
    prompts = [json.loads(line)["prompt"] for line in data.read_text().splitlines()]
    tokens = AutoTokenizer.from_pretrained(tiny_model("qwen2"))
    lengths = [len(ids) for ids in encode([("", Prompted(prompt)) for prompt in prompts], tokens)[0].ids]
    fit = sorted(lengths)[6]
    phase = {**PPO, "max_new_tokens": 64 - fit, "inner_epochs": 1, "samples": 1}
    made = online(tiny_model("qwen2"), {"train": str(data), "allow_loss": 0.5}, phase, max_steps=1)
    run = tutelage.train(made, out=tmp_path / "run").folder
    assert events(run, "stage_started")[0]["examples"] == sum(length <= fit for length in lengths) < 12


def test_reward_hacking_budget_and_drift_are_told_once():
    state: dict[str, float] = {}
    watch = Watch(state, kl_budget=5.0, length_drift=2.0)
    first = {"reward": (0.0, 0.1), "held_out": (1.0, 0.1), "length": (10.0, 0.5), "kl": (0.0, 0.1)}
    assert watch.look(1, "reward", ["held_out"], first) == []
    noise = {**first, "reward": (0.2, 0.1), "held_out": (0.8, 0.1), "length": (15.0, 0.5)}
    assert watch.look(2, "reward", ["held_out"], noise) == []
    hacked = {"reward": (1.0, 0.1), "held_out": (0.2, 0.1), "length": (25.0, 0.5), "kl": (6.0, 0.1)}
    said = " ".join(Watch(state, kl_budget=5.0, length_drift=2.0).look(3, "reward", ["held_out"], hacked))
    for word in (
        "reward hacking? since step 1 the reward rose from 0 to 1 while held_out",
        "kl_budget",
        "from 10 to 25",
    ):
        assert word in said
    assert watch.look(4, "reward", ["held_out"], hacked) == []


def test_the_error_of_a_mean_takes_answers_to_one_prompt_together():
    values = torch.tensor([1.0, 1.0, 3.0, 3.0])
    mean, error = mean_with_error(values, torch.tensor([0, 0, 1, 1]))
    assert (mean, error) == (2.0, pytest.approx(1.0))  # two prompts, whose means 1 and 3 have a standard error of 1
    mean, error = mean_with_error(values, torch.arange(4))
    assert error == pytest.approx(float(values.std()) / 2)
