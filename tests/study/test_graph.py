"""Graphs: what they say is what torch counts, and what they show is what runs."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from feedfwd.cli import app
from feedfwd.config import FFNSpec
from feedfwd.errors import FeedfwdError
from feedfwd.ffn import DenseFFN, GatedFFN, accounting
from feedfwd.ffn.kernels import plain
from feedfwd.models import attention, block
from feedfwd.models.mlp import MLP
from feedfwd.models.tabular import Tabular
from feedfwd.models.transformer import Transformer
from feedfwd.study.graph import graph_of
from feedfwd.study.trace import INPUT, kept, trace

ROWS = torch.tensor([[0.2, 0.9, 1.0, 4.0], [0.7, 0.1, 0.0, 2.0]] * 4)
IDS = torch.arange(12)[None] % 7


class Own(nn.Module):
    """A layer as a user may write it: without modules inside, one function twice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight).tanh() @ self.weight.T + x


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    x = torch.randn(8, 16)
    table = Tabular([[0.0, 0.5, 1.0]] * 2, plain=1, categories=[5], hidden=[8], outputs=3, members=4)
    periodic = Tabular([[0.0, 0.5, 1.0]] * 2, plain=1, categories=[5], hidden=[8], outputs=3, numbers="periodic")
    return {
        "plain": (MLP([16, 32, 32, 4], dropout=0.1), x),
        "gated": (MLP([16, 32, 4], "swiglu", norm="batch"), x),
        "residual": (MLP([16, 32, 32, 4], "gelu", residual=True, dropout=0.1), x),
        "gated residual": (MLP([16, 32, 32, 4], "geglu", residual=True), x),
        "linear": (MLP([16, 4]), x),
        "own": (nn.Sequential(Own(), nn.Linear(16, 2)), x),
        "table": (table, ROWS),
        "periodic table": (periodic, ROWS),
        "transformer": (Transformer(7, width=16, depth=3, heads=2, hidden=32), IDS),
        "encoder": (
            Transformer(7, width=16, depth=2, heads=2, hidden=32, causal=False, ffn=FFNSpec(activation="gelu")),
            IDS,
        ),
    }


NETWORKS = networks()


def saved(model: nn.Module, x: Tensor) -> int:
    """Bytes of all that autograd saves, by the tensors' storages: counted here in another way than in the trace."""
    storages = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.train()(x)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    return sum(storage.nbytes() for at, storage in storages.items() if at not in own)


@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_kept_are_what_autograd_saves(name: str) -> None:
    model, x = NETWORKS[name]
    with plain():
        assert trace(model, x).total("kept") == saved(model, x)
    assert kept(model, x) == saved(model, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_flops_are_what_torch_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = NETWORKS[name]
    found = trace(model, x)
    monkeypatch.setattr(block, "attend", attention.by_torch)  # whose products torch's counter sees
    counter = FlopCounterMode(display=False)
    with plain(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        out = model.train()(x)
        forward = counter.get_total_flops()
        out.sum().backward()
    assert found.total("forward") == forward
    assert found.total("backward") == counter.get_total_flops() - forward
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_are_counted_once(name: str) -> None:
    model, x = NETWORKS[name]
    assert trace(model, x).total("parameters") == sum(p.numel() for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_a_window_and_long_rows_count_what_is_looked_at() -> None:
    model = Transformer(7, width=16, depth=1, heads=2, hidden=32, context=2048, window=64)
    ids = torch.zeros(1, 300, dtype=torch.int64)
    step = next(step for step in trace(model, ids).steps if step.op == "attention")
    pairs = sum(block.size for block in attention.plan(300, causal=True, window=64))
    assert step.forward == 4 * 2 * 8 * pairs and step.backward == 2 * step.forward


@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu", "geglu"])
def test_a_layer_keeps_what_the_formula_says(activation: str) -> None:
    spec = FFNSpec(activation=activation)
    gated = activation in ("swiglu", "geglu")
    layer = (GatedFFN if gated else DenseFFN)(16, 40, activation)
    found = trace(layer, torch.randn(5, 16))
    assert found.total("kept") == 5 * accounting.kept(spec, 16, 40, "plain", "fp32")
    assert found.total("forward") == 5 * accounting.flops(spec, 16, 40, "forward")
    assert kept(layer, torch.randn(5, 16)) == 5 * accounting.kept(spec, 16, 40, "kernels", "fp32")


def test_a_view_of_much_data_weighs_what_it_shows() -> None:
    from feedfwd.study.graph import _examples

    model, x, *_ = _examples(MLP([16, 8, 2]), torch.randn(5000, 16))
    assert trace(model, x).steps[0].kept == x.nbytes


def test_boxes_say_what_runs() -> None:
    g = graph_of(*NETWORKS["gated residual"], per=8)
    titles = [box.title for box in g.boxes]
    assert titles == [
        "linear", "layer norm", "gate and up, one product", "gelu(gate) ⊙ up", "linear", "+", "layer norm", "linear",
    ]  # fmt: skip
    residual = g.boxes[5]
    assert residual.times == 2 and residual.reads == {0, 4}, "what comes in and what the layer makes of it"
    assert g.boxes[0].reads == {INPUT} and g.boxes[6].reads == {5}


def test_a_table_joins_what_its_columns_become() -> None:
    g = graph_of(*NETWORKS["table"], per=8)
    join = next(box for box in g.boxes if box.title.startswith("join"))
    assert {g.boxes[n].title if n != INPUT else "input" for n in join.reads} == {"input", "piecewise", "embedding"}


def test_equal_blocks_are_shown_once_and_counted_all() -> None:
    g = graph_of(*NETWORKS["transformer"], per=12, unit="token")
    inside = [box for box in g.boxes if box.group]
    assert {box.times for box in inside} == {3} and len({box.group for box in inside}) == 1
    assert {"queries, keys, values", "turn by position", "attention", "silu(gate) ⊙ up"} <= {b.title for b in inside}
    outside = [box for box in g.boxes if not box.group]
    assert g.forward == pytest.approx(sum(b.forward for b in outside) + 3 * sum(b.forward for b in inside))


def test_the_gradient_does_not_go_back_to_the_input(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["graph", "iris", "--effort", "quick", "--out", str(tmp_path / "g.svg")])
    assert done.exit_code == 0 and "kept in between" in done.output, done.output
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    ways = [path.get("class") for path in root.iter("{http://www.w3.org/2000/svg}path")]
    assert ways.count("f") == ways.count("r") + 1
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"input", "relu", "loss", "in all"} <= set(texts)


def test_a_run_and_what_has_no_graph(tmp_path: Path) -> None:
    run = str(tmp_path / "r")
    arguments = ["fit", "iris", "--effort", "quick", "--set", "train.epochs=1", "--set", "ffn.activation=swiglu"]
    assert CliRunner().invoke(app, [*arguments, "--run", run]).exit_code == 0
    assert CliRunner().invoke(app, ["graph", run]).exit_code == 0
    assert "silu(gate) ⊙ up" in (tmp_path / "r/graph.svg").read_text()
    for words, says in ((["graph", run, "--set", "train.epochs=2"], "own settings"), (["graph", "irs"], "irs")):
        with pytest.raises(FeedfwdError, match=says):
            CliRunner().invoke(app, words, catch_exceptions=False)


def test_a_run_is_drawn_where_its_table_is_not(tmp_path: Path) -> None:
    table, run = tmp_path / "t.csv", tmp_path / "r"
    table.write_text("a,b,y\n" + "".join(f"{i},{'uvw'[i % 3]},{i % 2}\n" for i in range(60)))
    fit = ["fit", str(table), "--target", "y", "--effort", "quick", "--set", "train.steps=3", "--run", str(run)]
    assert CliRunner().invoke(app, fit).exit_code == 0
    table.unlink()
    done = CliRunner().invoke(app, ["graph", str(run)])
    assert done.exit_code == 0, done.output
    assert "join" in (run / "graph.svg").read_text()


def test_runs_of_texts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "\n".join(f"good {i},a\nbad {i},b" for i in range(30)))
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog. " * 80)
    runner = CliRunner()
    tuned = ["finetune", str(tmp_path / "t.csv"), "--set", "train.steps=3", "--set", "bag.buckets=512"]
    assert runner.invoke(app, [*tuned, "--run", str(tmp_path / "f")]).exit_code == 0
    language = ["pretrain", str(tmp_path / "t.txt"), "--size", "pico", "--set", "train.steps=2"]
    language += ["--set", "data.tokenizer=bytes", "--set", "data.row=32"]
    done = runner.invoke(app, [*language, "--run", str(tmp_path / "p")])
    assert done.exit_code == 0, done.output
    for name, shown in (("f", "weighted sum of embeddings"), ("p", "attention")):
        done = runner.invoke(app, ["graph", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
        assert shown in (tmp_path / name / "graph.svg").read_text()
