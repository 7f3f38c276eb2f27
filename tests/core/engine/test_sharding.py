"""When the gradients of a model that two processes share travel: with each micro-batch, or with a step's last."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from training import losses, recipe, write_chats

import tutelage

CODE = """
import json, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from tutelage.engine.sharding import reduce_on_last, shard

class Layer(nn.Module):
    def __init__(self, full):
        super().__init__()
        self.whole = nn.Linear(16, 16).requires_grad_(full)
        self.low = nn.Sequential(nn.Linear(16, 1), nn.Linear(1, 16))

    def forward(self, hidden):
        return hidden + torch.tanh(self.whole(hidden)) + self.low(hidden)

class Model(nn.Module):
    _no_split_modules = ["Layer"]

    def __init__(self, full):
        super().__init__()
        self.layers = nn.Sequential(Layer(full), Layer(full))
        self.head = nn.Linear(16, 4).requires_grad_(full)

    def forward(self, rows):
        return self.head(self.layers(rows)).square().mean()

def model(full):
    torch.manual_seed(0)
    return Model(full)

def learnt(model):
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
rows = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(1))  # of process, of micro-batch
counts = {False: [], True: []}
for full, found in counts.items():
    plain, shared = model(full), model(full)
    for batch in rows.flatten(0, 1):
        (plain(batch) / 2).backward()  # devices' gradients are averaged
    shard(shared, mesh)
    for step in range(2):
        for index, batch in enumerate(rows[rank]):
            reduce_on_last(shared, index == 2)
            with CommDebugMode() as mode:
                shared(batch).backward()
            found.append(sum(n for kind, n in mode.get_comm_counts().items() if "reduce_scatter" in str(kind)))
        for name, grad in learnt(shared).items():
            torch.testing.assert_close(grad.full_tensor(), learnt(plain)[name])
        shared.zero_grad(set_to_none=True)
print(json.dumps([counts[False], counts[True]]))
dist.destroy_process_group()
"""


def test_small_gradients_travel_once_a_step(tmp_path):
    """An adapter's: once for each of two layers. Those of all weights: always, also those outside layers."""
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    processes = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    found = [json.loads(process.communicate()[0]) for process in processes]
    assert found == [[[0, 0, 2] * 2, [3, 3, 3] * 2]] * 2


@pytest.mark.slow
def test_a_small_adapter_on_two_processes_learns_as_on_one(tiny_model, tmp_path):
    """Several micro-batches a step, whose gradients travel with the last."""
    data = {"train": str(write_chats(tmp_path / "chats.jsonl"))}
    small = {"adapter": {"kind": "lora", "rank": 1, "targets": ["q_proj"]}, "tokens_per_micro_batch": 64}
    one = tutelage.train(recipe(tiny_model("llama-untied"), data, **small), out=tmp_path / "one")
    made = recipe(tiny_model("llama-untied"), data, **small, devices=2, strategy="fsdp")
    two = tutelage.train(made, out=tmp_path / "two")
    assert losses(two.folder) == pytest.approx(losses(one.folder), abs=1e-4)
