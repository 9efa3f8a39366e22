from collections.abc import Iterable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Metaspace

from feedfwd.data.tokenizer import TextTokenizer
from feedfwd.errors import ConfigError, DataError
from feedfwd.ffn import FFNSpec
from feedfwd.ffn.lora import Adapter, add_adapters
from feedfwd.models import stepping
from feedfwd.models.generate import Piecewise, Sampling, complete, tokens, write
from feedfwd.models.transformer import Transformer

GREEDY = Sampling(temperature=0)
DRAWN = Sampling(0.9, top_k=30, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
PROMPTS = [[1, 2, 3, 4, 3, 5], [7], [3, 9, 8] * 9]  # the last one is longer than the context

SETTINGS: list[dict[str, Any]] = [
    {},
    {"kv_heads": 2, "qk_norm": True, "bias": "qkv"},
    {
        "positions": "learned",
        "norm_kind": "layer",
        "norm_place": "post",
        "bias": "all",
        "ffn": FFNSpec(activation="gelu"),
    },
    {"window": 7, "kv_heads": 1},
    {"end": 3},
    {"positions": "none", "tied": False},
]


def made(vocabulary: int = 50, **settings: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(vocabulary, width=32, depth=2, heads=4, hidden=48, context=24, **settings)
    for p in model.parameters():
        p.data.add_(0.15 * torch.randn_like(p))  # so that one token is clearly likelier than another
    return model


class Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
@pytest.mark.parametrize("settings", SETTINGS)
def test_remembering_batching_and_forgetting_change_no_token(
    settings: dict[str, Any], sampling: Sampling, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # a model that isn't copied to be read faster
        monkeypatch.setattr(stepping, "LARGE", 0)
    model = made(**settings)
    fast = list(tokens(model, PROMPTS, most=40, sampling=sampling))
    assert fast == list(tokens(model, PROMPTS, most=40, sampling=sampling, remember=False))
    for row, prompt in enumerate(PROMPTS):
        alone = tokens(model, [prompt], most=40, sampling=sampling, seed=row)
        assert [step[row] for step in fast] == [step[0] for step in alone]
    assert len({one for step in fast for one in step}) > 5  # no stuck needle


def test_within_the_context_it_is_the_models_own_argmax() -> None:
    model, text = made().eval(), [1, 2, 3]
    for (one,) in tokens(model, [text], most=20, sampling=GREEDY):
        assert one == int(model(torch.tensor([text]))[0, -1].argmax())
        text.append(one)


def test_the_model_is_left_as_it_was() -> None:
    model = made(dropout=0.5).train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    steps = tokens(model, [[1]], most=5, sampling=GREEDY)
    first = next(steps)
    steps.close()
    assert model.training and all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert next(tokens(model, [[1]], most=5, sampling=GREEDY)) == first  # no dropout
    model(torch.tensor([[1]])).sum().backward()


def test_an_end_token_ends_a_row_and_the_others_go_on() -> None:
    model = made()
    plain = list(tokens(model, PROMPTS, most=12, sampling=GREEDY))
    end = plain[3][0]
    steps = list(tokens(model, PROMPTS, most=12, sampling=GREEDY, end=end))
    for row in range(3):
        column = [step[row] for step in plain]
        stop = column.index(end) + 1 if end in column else 12
        assert [step[row] for step in steps][:stop] == column[:stop]
        assert all(step[row] is None for step in steps[stop:])


def test_filters_keep_what_they_say() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
    p = logits.softmax(-1)[0]

    def kept(**options: float) -> list[int]:
        return Sampling(**options).probabilities(logits)[0].nonzero().flatten().tolist()  # type: ignore[arg-type]

    assert kept() == [0, 1, 2, 3, 4]
    assert kept(top_k=2) == [0, 1] and kept(top_k=9) == [0, 1, 2, 3, 4]
    assert kept(top_p=float(p[0]) - 0.01) == [0] and kept(top_p=float(p[0]) + 0.01) == [0, 1]
    assert kept(min_p=float(p[2] / p[0]) - 0.01) == [0, 1, 2]
    assert kept(temperature=0.01, min_p=0.5) == [0]
    for cold in (1e-37, 1e-320):
        assert kept(temperature=cold) == Sampling(temperature=cold).draw(logits, None, [torch.Generator()]) == [0]
    torch.testing.assert_close(Sampling(temperature=2.0).probabilities(logits), (logits / 2).softmax(-1))


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]]).expand(4000, 3)
    generators = [torch.Generator().manual_seed(row) for row in range(4000)]
    drawn = torch.tensor(Sampling().draw(logits, None, generators))
    shares = drawn.bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=0.03, rtol=0)
    model = made()
    runs = [list(tokens(model, [[1]], most=20, seed=seed)) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_repetition_penalty_is_hugging_faces() -> None:
    logits = torch.tensor([[2.0, -2.0, 1.5, -1.0]])
    seen = torch.tensor([[True, True, False, False]])
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    assert sampling.draw(logits, seen, []) == [2]  # 2/2 = 1 < 1.5
    assert Sampling(temperature=0, repetition_penalty=3.0).draw(-logits, seen, []) == [3]  # 2/3 < 1


def test_pieces_join_to_the_text_and_never_split_a_character() -> None:
    text = "naïve 前馈 🙂 end"
    piecewise = Piecewise(Bytes())
    pieces = [piecewise.add(i) for i in Bytes().encode(text)] + [piecewise.finish()]
    assert "".join(pieces) == text and not any("�" in piece for piece in pieces)
    broken = Piecewise(Bytes())
    assert "".join([broken.add(i) for i in b"ok \xff"] + [broken.finish()]) == "ok �"


def test_the_first_space_after_a_prompt_is_kept() -> None:
    engine = Tokenizer(WordLevel({"▁two": 0, "▁times": 1, "one": 2}))
    engine.pre_tokenizer, engine.decoder = Metaspace(), MetaspaceDecoder()
    tokenizer = TextTokenizer(engine)
    for before, said in (
        ([0], " times two"),
        ([0] * 20, " times two"),
        ([], "times two"),
        ([tokenizer.end], "times two"),
    ):
        piecewise = Piecewise(tokenizer, before=before)
        assert "".join([piecewise.add(1), piecewise.add(0), piecewise.finish()]) == said


def test_streaming_equals_the_batch_and_stops_at_strings() -> None:
    model = made(256)
    alone = ["".join(write(model, Bytes(), p, most=60, seed=i)) for i, p in enumerate(["a", "to be", "前"])]
    assert complete(model, Bytes(), ["a", "to be", "前"], most=60, batch_size=2) == alone
    stop = alone[0][5:7]
    assert "".join(write(model, Bytes(), "a", most=60, stop=[stop, "never"])) == alone[0][: alone[0].index(stop)]
    assert complete(model, Bytes(), ["a"], most=60, stop=[stop])[0] == alone[0][: alone[0].index(stop)]
    assert "".join(write(model, Bytes(), "", most=3, end=10)) is not None


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": 1}, {"repetition_penalty": 0}],
)
def test_bad_settings_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Sampling(**options)


def test_what_cannot_write_says_so() -> None:
    with pytest.raises(ConfigError, match="sees both sides"):
        next(tokens(made(causal=False), [[1]], most=1))
    with pytest.raises(DataError, match="no token to begin with"):
        next(tokens(made(), [[1], []], most=1))
    with pytest.raises(DataError, match="outside the model's vocabulary of 50"):
        next(tokens(made(), [[50]], most=1))


def test_what_is_no_plain_map_is_called_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend("tests")
    stranger = made(ffn=FFNSpec(kind="stranger:Maxout"))
    adapted = made(kv_heads=2)
    paths = ["attention.q", "attention.out", "ffn.gate_up", "ffn.down"]
    add_adapters(adapted, "a", {f"blocks.1.{path}": Adapter(2, 4.0) for path in paths})
    for p in adapted.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    watched = made()
    calls: list[int] = []
    watched.get_submodule("blocks.0.ffn").register_forward_hook(lambda *_: calls.append(1))
    for model in (stranger, adapted, watched):
        fast, slow = (list(tokens(model, PROMPTS, most=12, sampling=GREEDY, remember=r)) for r in (True, False))
        assert fast == slow
    assert len(calls) > 24


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_precision_writes(dtype: torch.dtype) -> None:
    model = made(kv_heads=2, qk_norm=True).to(dtype)
    steps = list(tokens(model, PROMPTS, most=30, sampling=DRAWN))
    assert len(steps) == 30
    if dtype == torch.float64:
        assert steps == list(tokens(model, PROMPTS, most=30, sampling=DRAWN, remember=False))
