"""The verbs and the kernels on a GPU; without one these tests skip themselves. Any other test finds the GPU, too."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import feedfwd as ff
from command import call
from feedfwd.ffn.kernels import dense, gated, gpu
from feedfwd.ffn.kernels.formulas import FROM_OUTPUT, SIGMA, Dropout, TorchPasses

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
ON_GPU = ("--set", "train.device=cuda")


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))


def result(run: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((Path(run) / "result.json").read_text())
    return found


def texts(path: Path, n: int = 240) -> Path:
    words = {"card": "card lost stolen arrive", "money": "top up cash transfer", "hello": "good morning dear team"}
    rows = ["text,label"]
    for i in range(n):
        label = list(words)[i % 3]
        mine = words[label].split()
        rows.append(f"number {i} says {mine[i % 4]} and {mine[(i // 4) % 4]},{label}")
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("sigma", SIGMA)
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layer_equals_its_formula(sigma: str, is_gated: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n, d, h = 100, 64, 1100  # hidden units beyond a block of the kernels
    m = 2 * h if is_gated else h
    shapes, scales = ((n, d), (m, d), (m,), (d, h), (d,)), (1, d**-0.5, 0.5, h**-0.5, 0.5)
    exact = [(s * torch.randn(shape)).to(dtype).double() for s, shape in zip(scales, shapes, strict=True)]
    dy = torch.randn(n, d).to(dtype)

    def run(device: str, to: torch.dtype) -> list[torch.Tensor]:
        leaves = [x.to(device, to).requires_grad_() for x in exact]
        y = (gated if is_gated else dense)(*leaves, sigma)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy.to(device, to))]

    for mine, right in zip(run("cuda", dtype), run("cpu", torch.float64), strict=True):
        error = (mine.cpu().double() - right).norm() / right.norm()
        assert error < (1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.skipif(gpu.triton is None, reason="there is no Triton")
def test_dropout_drops_the_same_in_both_directions() -> None:
    z = torch.randn(512, 2048, device="cuda").abs() + 0.1
    a, da = torch.empty_like(z), torch.ones_like(z)
    dropout = Dropout.draw(0.3, z)
    passes = gpu.TritonPasses("relu")
    passes.dense_forward(z, a, dropout)
    kept = a != 0
    assert abs(kept.float().mean().item() - 0.7) < 0.01
    torch.testing.assert_close(a[kept], z[kept] * dropout.scale)
    dz = z.clone()
    passes.dense_backward(dz, da, dropout)
    torch.testing.assert_close(dz, kept * dropout.scale)
    torch.testing.assert_close(da, a)  # the activations again


@pytest.mark.skipif(gpu.triton is None, reason="there is no Triton")
@pytest.mark.parametrize("sigma", gpu.SIGMA)
def test_the_kernels_equal_the_formulas(sigma: str) -> None:
    mine, right, (n, h) = gpu.TritonPasses(sigma), TorchPasses(sigma), (70, 1100)
    gu, da = 3 * torch.randn(n, 2 * h, device="cuda"), torch.randn(n, h, device="cuda")
    for is_gated in (True, False):
        z = gu if is_gated else gu[:, :h].contiguous()
        names = ("gated_forward", "gated_backward") if is_gated else ("dense_forward", "dense_backward")
        found = []
        for passes, to in ((mine, torch.float32), (right, torch.float64)):
            back, grads = z.to(to).clone(), da.to(to).clone()
            a = torch.empty_like(grads)
            getattr(passes, names[0])(back, a, None)
            getattr(passes, names[1])(back, grads, None)
            found.append((a, back, grads))
        for x, exact in zip(*found, strict=True):
            torch.testing.assert_close(x.double(), exact, rtol=1e-5, atol=1e-5)
    if sigma in FROM_OUTPUT:
        a = torch.relu(gu[:, :h]).contiguous()
        ours, theirs = da.clone(), da.double()
        mine.output_backward(a, ours, 1.7)
        right.output_backward(a.double(), theirs, 1.7)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_fit_resumes_to_the_bit_and_predicts_on_a_cpu() -> None:
    assert call("fit", "digits", "--run", "whole", "--set", "train.epochs=8", *ON_GPU) == 0
    found = result("whole")
    assert found["test"]["accuracy"] > 0.95  # type: ignore[index]
    assert "cuda" in json.dumps(found)
    assert call("fit", "digits", "--run", "again", "--set", "train.epochs=8", *ON_GPU) == 0
    first, second = ((Path(run) / "model.safetensors").read_bytes() for run in ("whole", "again"))
    assert first == second
    x, y = load_digits(return_X_y=True)
    assert (ff.load("whole").predict(x) == y.astype(str)).mean() > 0.95


def test_a_table_is_fitted_and_answered() -> None:
    rng = np.random.default_rng(0)
    rows = ["size,kind,price", *(f"{x:.3f},{'ab'[i % 2]},{3 * x + i % 2:.3f}" for i, x in enumerate(rng.random(300)))]
    Path("t.csv").write_text("\n".join(rows) + "\n")
    assert call("fit", "t.csv", "--target", "price", "--run", "table", "--effort", "best", *ON_GPU) == 0
    assert call("predict", "table", "t.csv", "--out", "answers.csv") == 0


def test_a_language_model_learns_and_writes() -> None:
    Path("text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(3000)))
    size = ("--size", "nano", "--set", "data.tokenizer=bytes", "--set", "train.steps=120")
    assert call("pretrain", "text.txt", "--run", "lm", *size, *ON_GPU) == 0
    found = result("lm")
    assert found["validation"]["bits_per_byte"] < 2.5  # type: ignore[index]
    assert call("generate", "lm", "3 times", "--tokens", "20") == 0
    assert call("evaluate", "lm", "text.txt") == 0


@pytest.mark.parametrize("method", ["full", "lora", "head"])
def test_a_pretrained_encoder_is_fine_tuned(tiny_bert: Path, method: str) -> None:
    data = texts(Path("t.csv"))
    argv = ("finetune", str(data), "--from", str(tiny_bert), "--method", method, "--run", method, *ON_GPU)
    assert call(*argv, "--set", "train.epochs=6") == 0
    assert result(method)["test"]["accuracy"] > 0.35  # type: ignore[index]
    assert call("predict", method, str(data)) == 0


def test_from_scratch_and_embed() -> None:
    data = texts(Path("t.csv"))
    assert call("finetune", str(data), "--run", "bag", *ON_GPU) == 0
    assert result("bag")["test"]["accuracy"] > 0.9  # type: ignore[index]
    assert call("finetune", str(data), "--task", "embed", "--run", "embed", *ON_GPU) == 0


def test_a_language_model_is_instructed() -> None:
    Path("text.txt").write_text("".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(3000)))
    size = ("--size", "nano", "--set", "data.tokenizer=bytes", "--set", "train.steps=20")
    assert call("pretrain", "text.txt", "--run", "lm", *size, *ON_GPU) == 0
    rows = [{"prompt": f"{i} times 2?", "completion": f"{2 * i}."} for i in range(60)]
    Path("chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert call("finetune", "chat.jsonl", "--from", "lm", "--run", "chat", "--set", "train.epochs=2", *ON_GPU) == 0


def test_estimators_train_there() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    model = ff.FeedForwardClassifier(settings={"train.device": "cuda"}).fit(x, y)
    assert model.score(x, y) > 0.9
    assert model.partial_fit(x, y).partial_fit(x, y).score(x, y) > 0.9
    assert {p.device.type for p in model.model_.parameters()} == {"cpu"}
