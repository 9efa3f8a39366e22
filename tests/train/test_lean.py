"""The short Adam against torch's."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from feedfwd.train.lean import LeanAdam
from feedfwd.train.resume import flatten_state, restore_state


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_it_is_torchs_to_the_bit(kind: type[torch.optim.Adam], weight_decay: float) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(5, 3)
    twin = copy.deepcopy(plain)
    groups = [{"params": [plain.weight], "weight_decay": weight_decay}, {"params": [plain.bias], "weight_decay": 0.0}]
    adam = kind(groups, lr=0.1, betas=(0.8, 0.95), eps=1e-6, fused=True)
    lean = LeanAdam(
        twin, 0.1, weight_decay=weight_decay, betas=(0.8, 0.95), eps=1e-6, decoupled=kind is torch.optim.AdamW
    )
    for i in range(6):
        for a, b in zip(plain.parameters(), twin.parameters(), strict=True):
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in (adam, lean):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (i + 1)
            optimizer.step()
        if i == 3:  # a state that was saved takes the place of another
            tensors, numbers = flatten_state(lean)
            saved = {name: tensor.clone() for name, tensor in tensors.items()}
            again = LeanAdam(twin, 7.0, weight_decay=weight_decay, decoupled=kind is torch.optim.AdamW)
            restore_state(again, saved, numbers)
            lean = again
    assert torch.equal(plain.weight, twin.weight) and torch.equal(plain.bias, twin.bias)
    for index, name in enumerate(("weight", "bias")):
        expected, found = adam.state_dict()["state"][index], lean.state_dict()["state"][index]
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def test_it_does_not_import_torchs_compiler() -> None:
    program = """
import sys, torch
from torch import nn
from feedfwd.train.lean import LeanAdam
model = nn.Linear(2, 2)
adam = LeanAdam(model, 0.1)
for p in model.parameters():
    p.grad = torch.ones_like(p)
adam.step()
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
