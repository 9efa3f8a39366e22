"""Adapters to and from peft: the same files, the same outputs."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from feedfwd.config import FFNSpec
from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn.gated import GatedFFN
from feedfwd.ffn.lora import activate, adapt, adapter_state, lora_layers, unwrap
from feedfwd.interop.decoders import LLAMA_NAMES
from feedfwd.interop.huggingface import export
from feedfwd.interop.peft import load_peft, names_from, save_peft
from feedfwd.models.transformer import Transformer

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

WIDTH, HIDDEN, CLASSES = 16, 24, 5
X = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(3))


class Unpacked(nn.Module):
    """The gated layer as the rest of the world writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(WIDTH, HIDDEN), nn.Linear(WIDTH, HIDDEN)
        self.down_proj = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Theirs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Unpacked(), Unpacked()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)


class Ours(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([GatedFFN(WIDTH, HIDDEN, bias=True) for _ in range(2)])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def names(path: str) -> str:
    path = path.replace("blocks.", "layers.")
    return f"{path}_proj" if path.endswith("down") else path


def pair() -> tuple[Ours, Theirs]:
    torch.manual_seed(0)
    ours, theirs = Ours(), Theirs()
    with torch.no_grad():
        for mine, other in zip(ours.blocks, theirs.layers, strict=True):
            nn.init.normal_(mine.gate_up_bias)
            for part, weight, bias in zip(
                (other.gate_proj, other.up_proj), mine.gate_up.chunk(2), mine.gate_up_bias.chunk(2), strict=True
            ):
                part.weight.copy_(weight)
                part.bias.copy_(bias)
            other.down_proj.load_state_dict(mine.down.state_dict())
        theirs.head.load_state_dict(ours.head.state_dict())
        torch.testing.assert_close(ours(X), theirs(X))
    return ours.eval(), theirs.eval()


def stir(tensors: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


def close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() <= 1e-5 * max(1.0, b.abs().max().item())


METHODS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"lora_bias": True},
    "dora + rslora": {"use_dora": True, "use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 6}, "alpha_pattern": {"layers.1.down_proj": 3}},
    "head": {"modules_to_save": ["head"]},
    "all biases": {"bias": "all"},
    "their biases": {"bias": "lora_only"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("targets", [["gate_proj", "up_proj", "down_proj"], ["down_proj"], ["up_proj"], r".*\.0\..*"])
def test_an_adapter_from_peft_gives_the_same_outputs(method: str, targets: list[str] | str, tmp_path: Path) -> None:
    ours, theirs = pair()
    config = peft.LoraConfig(r=4, lora_alpha=10, lora_dropout=0.1, target_modules=targets, **METHODS[method])
    model = peft.get_peft_model(theirs, config).eval()
    stir({key: p for key, p in model.named_parameters() if p.requires_grad})
    model.save_pretrained(tmp_path)
    before = ours(X)
    paths = load_peft(ours, tmp_path, names=names)
    assert paths and (ours(X) - before).abs().max() > 0.05
    close(ours(X), model(X))


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "bias", "ranks", "head"])
@pytest.mark.parametrize("targets", [["*"], ["gate_up", "down"], ["blocks.0.*"], ["down", "head"]])
def test_an_adapter_for_peft_gives_the_same_outputs(method: str, targets: list[str], tmp_path: Path) -> None:
    ours, theirs = pair()
    if method == "ranks":
        targets = ["blocks.0.down"]
        adapt(ours, ["blocks.1.gate_up"], rank=3, alpha=5, dropout=0.1)
    kind = method if method in ("rslora", "dora") else "lora"
    adapt(ours, targets, rank=4, alpha=10, dropout=0.1, method=kind, bias=method == "bias")
    if method == "head" and "head" not in targets and "*" not in targets:
        ours.head.requires_grad_()
    stir({key: p for key, p in ours.named_parameters() if p.requires_grad})
    save_peft(ours, tmp_path, names=names, base="someone/model")
    before = theirs(X)
    model = peft.PeftModel.from_pretrained(theirs, tmp_path).eval()
    close(model(X), ours(X))
    assert (ours(X) - before).abs().max() > 0.05
    tuned = {
        key.removeprefix("base_model.model.").partition(".lora_")[0]
        for key, _ in model.named_parameters()
        if ".lora_" in key
    }
    unpacked = {"gate_up": ["gate_proj", "up_proj"]}
    mine = {
        names(f"{path.rpartition('.')[0]}.{leaf}").lstrip(".")
        for path, _ in lora_layers(ours)
        for leaf in unpacked.get(path.rpartition(".")[2], [path.rpartition(".")[2]])
    }
    assert tuned == mine, "and peft adapts no other layer"


@pytest.mark.parametrize("settings", [{}, {"method": "dora"}, {"bias": True, "method": "rslora"}])
def test_there_and_back_is_exact(settings: dict, tmp_path: Path) -> None:
    model, other = pair()[0], pair()[0]
    adapt(model, ["*"], rank=3, alpha=6, dropout=0.2, name="mine", **settings)
    stir(adapter_state(model, "mine"))
    save_peft(model, tmp_path, "mine")
    assert load_peft(other, tmp_path, "theirs") == [path for path, _ in lora_layers(model)]
    state, again = adapter_state(model, "mine"), adapter_state(other, "theirs")
    assert state.keys() == again.keys()
    for key in state:
        torch.testing.assert_close(again[key], state[key], atol=0, rtol=1e-6)
    assert [m.adapters["theirs"] for _, m in lora_layers(other)] == [m.adapters["mine"] for _, m in lora_layers(model)]
    assert other.blocks[0].down.active == "theirs" and other.blocks[0].down.lora_A["theirs"].requires_grad


def test_the_absent_half_of_a_packed_weight_stays_absent(tmp_path: Path) -> None:
    ours, theirs = pair()
    model = peft.get_peft_model(theirs, peft.LoraConfig(r=4, target_modules=["up_proj"]))
    stir({key: p for key, p in model.named_parameters() if p.requires_grad})
    model.save_pretrained(tmp_path)
    load_peft(ours, tmp_path, names=names)
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        ours(X).square().sum().backward()
        optimizer.step()
    for key, tensor in adapter_state(ours).items():
        gate, up = tensor.chunk(2)
        assert not gate.any() and up.any(), key


def test_what_the_folder_holds(tmp_path: Path) -> None:
    ours, _ = pair()
    adapt(ours, ["gate_up", "down"], rank=4, method="dora")
    save_peft(ours, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down", "gate_proj", "up_proj"] and config["use_dora"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.blocks.1.up_proj.lora_A.weight"].shape == (4, WIDTH)
    assert tensors["base_model.model.blocks.0.down.lora_magnitude_vector"].shape == (WIDTH,)
    assert len(tensors) == 2 * 3 * 3


def broken(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_folders_that_can_t_be_read(tmp_path: Path) -> None:
    ours, _ = pair()
    adapt(ours, ["down"], rank=4)
    good = tmp_path / "good"
    save_peft(ours, good)
    with pytest.raises(DataError, match=r"no adapter_config\.json"):
        load_peft(pair()[0], tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"adapts 'blocks.0.down'.*did you mean 'layers.0.down_proj'"):
        load_peft(pair()[0], good, names=names)
    with pytest.raises(ConfigError, match="already"):
        load_peft(ours, good)
    with pytest.raises(DataError, match="for a weight"):
        load_peft(nn.ModuleDict({"blocks": nn.ModuleList([nn.ModuleDict({"down": nn.Linear(8, 8)})] * 2)}), good)
    for changes, said in (
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_qalora": True}, "use_qalora is not supported"),
    ):
        before = (good / "adapter_config.json").read_text()
        broken(good, **changes)
        with pytest.raises(DataError, match=said):
            load_peft(pair()[0], good)
        (good / "adapter_config.json").write_text(before)
    tensors = load_file(good / "adapter_model.safetensors")
    save_file(tensors | {"base_model.model.embed.weight": torch.ones(2, 2)}, good / "adapter_model.safetensors")
    with pytest.raises(DataError, match=r"it holds 'embed.weight'"):
        load_peft(pair()[0], good)
    tensors.pop("base_model.model.blocks.0.down.lora_A.weight")
    save_file(tensors, good / "adapter_model.safetensors")
    with pytest.raises(DataError, match="incomplete"):
        load_peft(pair()[0], good)
    (good / "adapter_model.safetensors").write_bytes(b"{}")
    with pytest.raises(DataError, match="damaged"):
        load_peft(pair()[0], good)
    (good / "adapter_model.safetensors").rename(good / "adapter_model.bin")
    with pytest.raises(DataError, match="pickle"):
        load_peft(pair()[0], good)


def test_a_failed_load_leaves_the_model_alone(tmp_path: Path) -> None:
    ours, other = pair()[0], pair()[0]
    adapt(ours, ["down"], rank=4)
    save_peft(ours, tmp_path)
    with pytest.raises(DataError):
        load_peft(other, tmp_path, names=names)
    assert not list(lora_layers(other)) and all(p.requires_grad for p in other.parameters())


def test_what_peft_s_format_can_t_say(tmp_path: Path) -> None:
    ours, _ = pair()
    adapt(ours, ["blocks.0.down"], rank=2)
    adapt(ours, ["blocks.1.down"], rank=2, method="rslora")
    with pytest.raises(ConfigError, match="differs between layers in method"):
        save_peft(ours, tmp_path)
    with pytest.raises(ConfigError, match="no adapter 'other'"):
        save_peft(ours, tmp_path, "other")
    activate(ours, None)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_language_model_and_its_adapter_as_their_own(method: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ffn = FFNSpec(activation="swiglu", bias=False)
    model = Transformer(50, width=16, depth=2, heads=2, hidden=24, context=32, tied=False, ffn=ffn).eval()
    export(model, tmp_path / "base")
    names = names_from(LLAMA_NAMES)
    adapt(model, ["attention.*", "gate_up", "down", "head"], rank=2, dropout=0.1, method=method)
    stir(adapter_state(model))
    save_peft(model, tmp_path / "adapter", names=names, base=str(tmp_path / "base"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = torch.randint(0, 50, (2, 20))
    with torch.no_grad():
        close(adapted(ids).logits, model(ids))
        again = Transformer(50, width=16, depth=2, heads=2, hidden=24, context=32, tied=False, ffn=ffn).eval()
        again.load_state_dict(unwrap(model).state_dict())
        load_peft(again, tmp_path / "adapter", names=names)
        close(again(ids), adapted(ids).logits)
