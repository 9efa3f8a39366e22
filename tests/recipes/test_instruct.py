import json
import math
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import feedfwd as ff
from feedfwd.checkpoint import Run
from feedfwd.cli import main
from feedfwd.config import parse
from feedfwd.config_finetune import FinetuneConfig
from feedfwd.config_instruct import InstructConfig
from feedfwd.config_pretrain import PretrainConfig
from feedfwd.data.chats import Turn
from feedfwd.data.conversations import ChatBatches
from feedfwd.errors import ConfigError, DataError, RunError
from feedfwd.models.apart import Apart
from feedfwd.models.generate import Sampling
from feedfwd.models.transformer import build
from feedfwd.recipes.answered import answer_scores
from feedfwd.recipes.apply import evaluate_run
from feedfwd.recipes.chatter import Chatter
from feedfwd.recipes.console import Silent
from feedfwd.recipes.export import export_run
from feedfwd.recipes.finetune import finetune_config
from feedfwd.recipes.instruct import dry_run, instruct_config, memory, prepare_chats, resume
from feedfwd.recipes.interrupt import Interrupted
from feedfwd.recipes.pretrain import pretrain_config
from feedfwd.train.cross_entropy import Gradients
from feedfwd.train.loop import train
from feedfwd.train.losses import build_loss

COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red", "sun": "yellow"}


def chats() -> list[dict]:
    asked = ["What colour is {}?", "Tell me the colour of {}.", "{}: which colour?"]
    return [
        {"prompt": q.format(thing), "completion": f"It is {colour}."}
        for thing, colour in COLOURS.items()
        for q in asked
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("instruct")
    lines = [f"{row['prompt']} {row['completion']}\n" for row in chats()]
    (folder / "text.txt").write_text("".join(lines) * 20, encoding="utf-8")
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats())), encoding="utf-8")
    config = PretrainConfig.model_validate({
        "sources": [str(folder / "text.txt")], "size": "pico", "train": {"steps": 3, "batch_size": 4},
        "data": {"vocabulary": 300, "row": 64}, "model": {"width": 64, "depth": 2, "heads": 2},
    })  # fmt: skip
    pretrain_config(config, folder / "base")
    return folder


def config(place: Path, **settings) -> InstructConfig:
    said = {"source": str(place / "chats.jsonl"), "pretrained": str(place / "base"), "seed": 1}
    made = parse(InstructConfig, said)
    for key, value in settings.items():
        made = made.with_(key.replace("__", "."), value)
    return made


@pytest.mark.parametrize("packing", [False, True])
def test_a_model_learns_to_answer_and_to_stop(place, tmp_path, packing):
    settings = {"train__steps": 120, "optimizer__lr": 0.003, "chat__validation": 0.0, "train__batch_size": 6}
    settings |= {"chat__packing": packing}
    made = instruct_config(config(place, **settings), tmp_path / "run")
    loaded = Chatter.load(tmp_path / "run")
    for thing, colour in COLOURS.items():
        assert loaded.answer(f"What colour is {thing}?", sampling=Sampling(temperature=0)) == f"It is {colour}."
    ids = torch.arange(5)[None]
    assert torch.equal(made.model(ids), loaded.model(ids))
    assert loaded.answer(
        [("user", "What colour is sky?"), ("assistant", "It is blue."), ("user", "snow: which colour?")]
    )


def test_what_answers_already_can_be_started_from(place, tmp_path):
    answers = instruct_config(
        config(place, chat__template=str(_own_template(tmp_path)), train__steps=4), tmp_path / "a"
    )
    again = prepare_chats(config(place).with_("pretrained", str(tmp_path / "a")))
    assert again.template.source == answers.template.source and "Reply" in again.template.source
    ids = torch.arange(6)[None]
    assert torch.equal(again.model.eval()(ids), answers.model(ids))
    made = instruct_config(config(place, pretrained=str(tmp_path / "a"), method="lora", train__steps=2), tmp_path / "b")
    assert isinstance(made.answer("What colour is sky?"), str)
    rows = [{"text": row["prompt"], "label": row["prompt"].split()[0]} for row in chats()]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labelled = FinetuneConfig(source=str(tmp_path / "t.jsonl"), pretrained=str(tmp_path / "a")).with_("train.steps", 1)
    assert finetune_config(labelled, tmp_path / "c").predict(["snow: which colour?"]).shape == (1,)
    further = {"sources": [str(place / "text.txt")], "pretrained": str(tmp_path / "a"), "train": {"steps": 1}}
    pretrain_config(PretrainConfig.model_validate(further), tmp_path / "d")
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(RunError, match=r"tokenizer\.json"):
        prepare_chats(config(place).with_("pretrained", str(tmp_path / "a")))


def _own_template(folder: Path) -> Path:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    (folder / "own.jinja").write_text(source + "{% if add_generation_prompt %}Reply: {% endif %}")
    return folder / "own.jinja"


def test_a_models_own_template_is_taken_from_the_hub_too(place, tmp_path, monkeypatch):
    export_run(place / "base", "hf", tmp_path / "hf", Silent())
    said = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    own = _own_template(tmp_path).read_text()
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(said | {"chat_template": own}))
    monkeypatch.setattr("feedfwd.recipes.pretrained.fetch_model", lambda name: tmp_path / "hf")
    assert prepare_chats(config(place, pretrained="some/model")).template.source == own


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_train_alone_and_are_merged(place, tmp_path, method):
    made = instruct_config(config(place, method=method, train__steps=4), tmp_path / "run")
    result = made.result
    assert 0 < result["trained_parameters"] < 0.6 * result["parameters"]
    names = Run(tmp_path / "run").load_model()
    assert not [name for name in names if "lora" in name]
    before = Run(place / "base").load_model()
    assert torch.equal(names["embedding.weight"], before["embedding.weight"])
    assert any(not torch.equal(names[name], before[name]) for name in before)


def gradients(model, batches, accumulate: int) -> tuple[float, dict[str, torch.Tensor]]:
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    (step,) = train(
        model,
        iter(batches),
        build_loss("cross_entropy"),
        optimizer,
        steps=1,
        accumulate=accumulate,
        gradients=Gradients(),
    )
    return float(step.loss), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_the_loss_is_the_same_however_the_batch_is_split_padded_or_packed(place, tmp_path, positions):
    said = [
        row | ({"prompt": "?"} if i % 3 else {"completion": 4 * row["completion"]}) for i, row in enumerate(chats())
    ]
    (tmp_path / "mixed.jsonl").write_text("\n".join(map(json.dumps, said)), encoding="utf-8")
    p = prepare_chats(config(place, source=str(tmp_path / "mixed.jsonl")))
    if positions == "learned":
        torch.manual_seed(0)
        p.model = build(p.model.settings | {"positions": "learned", "norm_kind": "layer", "bias": "all"})
    rows = torch.arange(12)
    whole = gradients(p.model, [p.train.batch(rows)], 1)
    split = gradients(p.model, [p.train.batch(part) for part in torch.split(rows, [1, 7, 4])], 3)
    batch = p.train.batch(rows)
    wider = type(batch)(*(F.pad(part, (0, 9)) for part in (batch.inputs, batch.targets, batch.weights)))
    padded = gradients(p.model, [wider], 1)
    assert p.train.packed(rows).inputs.shape[0] < 9
    packed = [p.train.packed(part) for part in torch.split(rows, [5, 1, 6])]
    loss, named = gradients(Apart(p.model), packed, 3)
    packed = loss, {name.removeprefix("model."): gradient for name, gradient in named.items()}
    for loss, found in (split, padded, packed):
        assert loss == pytest.approx(whole[0], abs=1e-5)
        for name, gradient in whole[1].items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_answers_alone(place):
    p = prepare_chats(config(place))
    p.model.eval()
    total, count = 0.0, 0
    for row in range(len(p.train)):
        batch = p.train.batch(torch.tensor([row]))
        losses = F.cross_entropy(p.model(batch.inputs)[0], batch.targets[0], reduction="none")
        learnt = batch.weights[0].bool()
        text = p.pretrained.tokenizer.decode(batch.targets[0][learnt].tolist())
        assert text.startswith("It is ")
        total, count = total + float(losses[learnt].detach().sum()), count + int(learnt.sum())
    scores = answer_scores(p.model, p.train)
    assert scores["loss"] == pytest.approx(total / count, rel=1e-4) and count == p.train.answers


def test_a_question_asked_twice_is_not_split_over_the_parts(place, tmp_path):
    rows = chats() * 3
    (tmp_path / "twice.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    p = prepare_chats(config(place, source=str(tmp_path / "twice.jsonl"), chat__validation=0.3))
    held = {chat[0].text for chat in p.held_back}
    assert held and len(p.held_back) == 3 * len(held)
    assert len(p.train) + len(p.held_back) == len(rows)


@pytest.mark.parametrize("packing", [False, True])
def test_batches_go_on_where_they_were(place, packing):
    p = prepare_chats(config(place))
    stream, again = (ChatBatches(p.train, 4, seed=3, packing=packing) for _ in range(2))
    for _ in range(5):
        next(stream)
    again.load_state_dict(stream.state_dict())
    assert torch.equal(next(stream).inputs, next(again).inputs)


def test_resuming_gives_the_same_bits(place, tmp_path, monkeypatch):
    whole = instruct_config(config(place, train__steps=6), tmp_path / "whole")
    from feedfwd.recipes import training as module

    original = module.Training._log_step

    def killed(self, step, meter):
        original(self, step, meter)
        if step.n == 4:
            self.save()
            raise Interrupted("killed", 2)

    monkeypatch.setattr(module.Training, "_log_step", killed)
    with pytest.raises(Interrupted):
        instruct_config(config(place, train__steps=6), tmp_path / "cut")
    monkeypatch.setattr(module.Training, "_log_step", original)
    cut = resume(tmp_path / "cut")
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RunError, match="finished"):
        resume(tmp_path / "cut")


def test_a_stop_while_it_is_planned_goes_on(place, tmp_path, monkeypatch):
    from feedfwd.recipes import instruct as module

    monkeypatch.setattr(module, "tried", lambda p: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"go on with: feedfwd finetune --resume .*run") as stop:
        instruct_config(config(place).with_("minutes", 0.01), tmp_path / "run")
    assert stop.value.code == 143
    monkeypatch.undo()
    assert resume(tmp_path / "run").result["steps"] >= 1


def test_packing_changes_no_update(place, tmp_path):
    settings = {"train__steps": 3, "train__batch_size": 100}  # all of them, so that the batches are alike
    packed, padded = (
        instruct_config(config(place, **settings, chat__packing=on), tmp_path / str(on)) for on in (True, False)
    )
    assert packed.result["validation"]["loss"] == pytest.approx(padded.result["validation"]["loss"], abs=1e-4)
    assert 0 < packed.result["examples_per_second"] < 1e6


def test_a_model_is_tested_on_a_file_of_its_own_and_evaluated(place, tmp_path, capsys):
    asked = [{"prompt": f"What colour is {thing}?", "completion": f"It is {c}."} for thing, c in COLOURS.items()]
    asked.append({"prompt": "What colour is love?", "completion": "It is not known."})
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, asked)))
    settings = {"train__steps": 120, "optimizer__lr": 0.003, "chat__validation": 0.0, "train__batch_size": 6}
    made = instruct_config(config(place, test=str(tmp_path / "test.jsonl"), **settings), tmp_path / "run")
    result = made.result
    assert result["sizes"]["test"] == 7 and result["asked"]["n"] == 7 and len(result["answers"]) == 4
    assert result["test"]["exact_answers"] == pytest.approx(6 / 7) and result["validation"] is None
    assert "6 of 7 test questions stand in the training part too" in result["notes"]
    assert "--test" in result["command"]
    listener = Lines()
    scores = evaluate_run(tmp_path / "run", None, listener)
    assert scores == pytest.approx(result["test"]) and "exact answers" in "\n".join(listener.lines)
    with torch.no_grad():  # bits a byte by hand: each token of the answers, over the bytes they spell
        total = 0.0
        for row in asked:
            chat = (Turn("user", row["prompt"]), Turn("assistant", row["completion"]))
            ids, learnt = made.template.conversation(chat)
            logp = made.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
            total -= sum(float(logp[i, ids[i + 1]]) for i in range(len(ids) - 1) if learnt[i + 1])
    size = sum(len(row["completion"]) for row in asked)
    assert scores["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-3)
    (tmp_path / "one.jsonl").write_text(json.dumps(asked[0]))
    assert evaluate_run(tmp_path / "run", str(tmp_path / "one.jsonl"), Silent())["exact_answers"] == 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Answers</h2>" in page and "It is blue." in page


def test_evaluate_takes_what_was_held_back(place, tmp_path):
    made = instruct_config(config(place, train__steps=2, chat__asked=1), tmp_path / "run")
    assert evaluate_run(tmp_path / "run", None, Silent()) == pytest.approx(made.result["validation"])
    assert made.result["asked"]["n"] == 1
    instruct_config(config(place, train__steps=2, chat__validation=0.0), tmp_path / "all")
    with pytest.raises(DataError, match="held back no conversations"):
        evaluate_run(tmp_path / "all", None, Silent())


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_dry_run_shows_what_is_learnt(place):
    listener = Lines()
    dry_run(config(place), listener)
    text = "\n".join(listener.lines)
    assert "learns to write: 'It is " in text and "of the model" not in text and "are answers and learnt" in text
    packed, plain, more = (
        memory(prepare_chats(config(place, train__precision="fp32", **{"train__batch_size": 8} | s)))
        for s in ({"chat__packing": True}, {}, {"train__batch_size": 16})
    )
    weights = 16 * sum(p.numel() for p in prepare_chats(config(place)).model.parameters())
    assert packed > weights and more - plain == pytest.approx(plain - weights, rel=0.2)


def test_what_cannot_be_learnt(place, tmp_path):
    with pytest.raises(DataError, match="nothing would train"):
        prepare_chats(config(place, chat__longest=8))
    with pytest.raises(DataError, match="no file"):
        prepare_chats(config(place, source="missing.jsonl"))
    with pytest.raises(ConfigError, match=r"unknown chat\.template"):
        prepare_chats(config(place, chat__template="plane"))
    with pytest.raises(ConfigError, match="needs the special tokens"):
        prepare_chats(config(place, chat__template="chatml"))
    with pytest.raises(ConfigError, match="adapt"):
        config(place, adapt__rank=4)
    with pytest.raises(ConfigError, match=r"attention\.z"):
        prepare_chats(config(place, method="lora", adapt__targets=["attention.z"]))
    with pytest.raises(DataError, match="neither a run"):
        prepare_chats(config(place, pretrained=str(tmp_path / "nothing")))


def test_an_encoder_cannot_answer(place, tmp_path):
    said = PretrainConfig.model_validate({
        "sources": [str(place / "text.txt")], "size": "pico", "data": {"vocabulary": 300, "row": 64},
        "train": {"steps": 1, "batch_size": 4, "objective": "masked"}, "model": {"width": 64, "depth": 1, "heads": 2},
    })  # fmt: skip
    pretrain_config(said, tmp_path / "masked")
    with pytest.raises(ConfigError, match="can't write"):
        prepare_chats(config(place, pretrained=str(tmp_path / "masked")))


def test_the_command_trains_answers_and_refuses(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["finetune", str(place / "chats.jsonl"), "--task", "instruct"]
    steps = ["--set", "train.steps=2"]

    def call(*argv: str) -> int:
        monkeypatch.setattr(sys, "argv", ["feedfwd", *argv])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    assert call(*base, "--from", str(place / "base"), "--run", "run", *steps) == 0
    assert "report.html" in capsys.readouterr().out
    assert "<html" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert call("generate", "run", "What colour is sky?", "--tokens", "5") == 0
    assert isinstance(ff.load("run"), Chatter)
    capsys.readouterr()
    for argv, said in (
        (base, "--from"),
        ([*base, "--from", "nothing"], "neither a run"),
        ([*base, "--from", str(place / "base"), "--shots", "3"], "--shots is for labelled texts"),
        (["generate", "run"], "question"),
        (["generate", "run", "a", "--stop", "b"], "--stop"),
        (["predict", "run", "a"], "finetune --task instruct"),
        (["evaluate", "run", "nowhere.jsonl"], "nowhere.jsonl"),
        (["finetune", "--resume", "run"], "is finished"),
        (["pretrain", "--resume", "run"], "finetune --task instruct"),
    ):
        assert call(*argv) == 2, argv
        error = capsys.readouterr().err.strip()
        assert said in error and "\n" not in error, (argv, error)
