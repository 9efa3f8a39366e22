"""A run in another project's form gives the same answers there; what can't be written says why and leaves nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch

import feedfwd as ff
from command import call
from feedfwd.config import overrides, parse
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.recipes.pretrain import pretrain_config

TINY = [
    "model.width=32",
    "model.depth=2",
    "model.heads=4",
    "ffn.hidden=48",
    "data.row=32",
    "train.batch_size=4",
    "train.steps=20",
    "train.threads=1",
    "train.precision=fp32",
]


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDFWD_CACHE", str(tmp_path / "cache"))
    Path("text.txt").write_text("".join(f"{i} 乘 {i % 7} = {i * (i % 7)}.\n" for i in range(300)), encoding="utf-8")


def trained(*settings: str) -> None:
    tree = overrides([*TINY, *settings], PretrainConfig)
    pretrain_config(parse(PretrainConfig, {"sources": ["text.txt"], **tree}), Path("run"))


@pytest.mark.parametrize(
    "settings",
    [
        ["data.tokenizer=bpe", "data.vocabulary=300"],
        ["data.tokenizer=chars", "model.qk_norm=true", "model.kv_heads=2", "model.tied=false"],
        ["data.tokenizer=bytes", "model.bias=qkv", "model.window=9"],
        ["data.tokenizer=bpe", "data.vocabulary=280", "model.bias=qkv"],
        ["data.tokenizer=chars", "model.bias=qkv"],
        ["data.tokenizer=bytes", "model.bias=qkv"],
        ["model.rope_scaling.kind=linear", "model.rope_scaling.factor=2"],
        ["model.rope_scaling.kind=yarn", "model.rope_scaling.factor=4", "model.rope_scaling.original=16"],
        ["model.rope_scaling.kind=llama3", "model.rope_scaling.factor=4", "model.rope_scaling.original=16"],
    ],
    ids=lambda s: s[0].replace("=", " "),
)
def test_transformers_loads_it_with_the_same_logits(settings: list[str]) -> None:
    transformers = pytest.importorskip("transformers")
    trained(*settings)
    assert call("export", "run", "--to", "hf", "--out", "deep/out") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained("deep/out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("deep/out")
    ours = ff.load("run")
    text = "12 乘 5 = 60.\n13 乘 6 ="  # Qwen2's own tokenizer splits numbers otherwise
    ids = ours.encode(text)
    assert tokenizer(text)["input_ids"] == ids[0].tolist() and tokenizer.decode(ids[0]) == text
    assert tokenizer.eos_token_id == theirs.config.eos_token_id == ours.tokenizer.end
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, ours.model(ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("source", ["iris", "diabetes", "digits"])
def test_onnxruntime_answers_raw_examples(source: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert call("fit", source, "--effort", "quick", "--set", "train.steps=20", "--run", "fitted") == 0
    assert call("export", "fitted", "--to", "onnx", "--out", "out") == 0
    from feedfwd.data.readers import load

    x = load(source)[0].inputs[:7].float()
    ours = ff.load("fitted")
    (found,) = onnxruntime.InferenceSession("out/model.onnx").run(None, {"inputs": x.flatten(1).numpy()})
    if source == "diabetes":
        np.testing.assert_allclose(found[:, 0], ours.predict(x.numpy()), rtol=1e-4)
        assert not Path("out/classes.txt").exists()
    else:
        np.testing.assert_allclose(found, ours.predict_proba(x.numpy()), atol=1e-4)
        assert tuple(Path("out/classes.txt").read_text().split("\n")[:-1]) == ours.classes


@pytest.mark.parametrize(
    ("settings", "argv", "said"),
    [
        (["model.positions=learned", "model.norm_kind=layer"], ["--to", "hf", "--out", "out"], "model.norm_kind"),
        (["ffn.kind=dense"], ["--to", "hf", "--out", "out"], "ffn.kind"),
        ([], ["--to", "onnx", "--out", "out"], "--to hf"),
        ([], ["--to", "gguf", "--out", "out"], "known: hf, onnx"),
        ([], ["--to", "hf", "--out", "run"], "not empty"),
        ([], ["--to", "hf", "--out", "text.txt/out"], "can't be written"),
    ],
    ids=lambda s: " ".join(s) if isinstance(s, list) else s,
)
def test_what_can_not_be_written_says_so(
    settings: list[str], argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(*settings)
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    assert call("export", "run", *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert sorted(Path.cwd().rglob("*")) == before


def test_a_shape_whose_tokenizer_transformers_replaces_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    transformers = pytest.importorskip("transformers")
    trained("data.tokenizer=chars", "model.bias=qkv", "model.window=9")
    assert call("export", "run", "--to", "hf", "--out", "out") == 0
    assert "PreTrainedTokenizerFast" in capsys.readouterr().out
    text = "12 乘 5 = 60.\n"
    assert transformers.PreTrainedTokenizerFast.from_pretrained("out")(text)["input_ids"] == (
        ff.load("run").encode(text)[0].tolist()
    )
