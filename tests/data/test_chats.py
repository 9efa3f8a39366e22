import json
from pathlib import Path

import pytest

from feedfwd.data.chats import Turn, read_chats, recognised
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.data.templates import CHATML, NAMED, ChatTemplate, chat_template
from feedfwd.data.tokenizer import END, learn_bpe
from feedfwd.errors import ConfigError, DataError

CHAT = (Turn("user", "Where is my card?"), Turn("assistant", "On its way."))


def written(path: Path, rows: list) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer() -> ModelTokenizer:
    learnt = learn_bpe(["Where is my card? It is on its way. Question Answer user assistant\n\n"] * 3, 300)
    learnt.engine.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return ModelTokenizer(learnt.to_json(), {"bos_token": END, "eos_token": END})


FORMS = {
    "messages": {"messages": [{"role": t.role, "content": t.text} for t in CHAT]},
    "conversations": {
        "conversations": [{"from": "human", "value": CHAT[0].text}, {"from": "gpt", "value": CHAT[1].text}]
    },
    "instruction and output": {"instruction": CHAT[0].text, "input": "", "output": CHAT[1].text},
    "prompt and completion": {"prompt": CHAT[0].text, "completion": CHAT[1].text},
    "question and answer": {"question": CHAT[0].text, "answer": CHAT[1].text},
    "Prompt and Response": {"Prompt": CHAT[0].text, "Response": f" {CHAT[1].text}\n"},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_conversations(form):
    assert recognised(FORMS[form]) == (form, CHAT)


def test_halves_as_messages_and_a_system_text():
    row = {
        "system": "Be short.",
        "prompt": FORMS["messages"]["messages"][:1],
        "completion": FORMS["messages"]["messages"][1:],
    }
    assert recognised(row)[1] == (Turn("system", "Be short."), *CHAT)


def test_an_unanswered_question_at_the_end_is_dropped():
    turns = [*FORMS["messages"]["messages"], {"role": "user", "content": "And now?"}]
    assert recognised({"messages": turns})[1] == CHAT


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet", "csv"])
def test_files(tmp_path, suffix):
    import polars

    rows = [FORMS["prompt and completion"]] * 3
    path = tmp_path / f"chats.{suffix}"
    match suffix:
        case "jsonl":
            written(path, rows)
        case "json":
            path.write_text(json.dumps(rows), encoding="utf-8")
        case "parquet":
            polars.DataFrame(rows).write_parquet(path)
        case "csv":
            polars.DataFrame(rows).write_csv(path)
    found = read_chats(str(path))
    assert found.chats == (CHAT,) * 3 and found.form == "prompt and completion"


def test_few_broken_rows_are_left_out_and_counted(tmp_path):
    rows = [FORMS["messages"]] * 30 + [{"messages": []}]
    found = read_chats(written(tmp_path / "a.jsonl", rows))
    assert len(found) == 30 and "1 rows left out (row 31: it has no turns)" in found.notes


BAD = {
    "no answer": ({"messages": [{"role": "user", "content": "Hi"}]}, "the assistant says nothing"),
    "a strange role": ({"messages": [{"role": "wizard", "content": "Hi"}]}, "'wizard'"),
    "no text": ({"prompt": "Hi", "completion": 5}, "completion is no text"),
    "empty": ({"prompt": "Hi", "completion": " "}, "completion is empty"),
    "other names": ({"a": "Hi", "b": "Ho"}, "neither messages nor a prompt"),
    "half a character": ({"prompt": "Hi", "completion": "\ud800"}, "no Unicode text"),
    "turns that are no list": ({"messages": "Hi"}, "no JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_are_no_conversation(tmp_path, case):
    row, said = BAD[case]
    with pytest.raises(DataError, match=said):
        read_chats(written(tmp_path / "a.jsonl", [row] * 3))


@pytest.mark.parametrize(("name", "content", "said"), [
    ("missing.jsonl", None, "no file"), ("a.jsonl", "", "is empty"), ("a.json", "{}", "no list"),
    ("a.json", "[", "no JSON"),
    ("a.xml", "x", "not of a form"), ("a.csv", "prompt,completion\n", "no rows"),
])  # fmt: skip
def test_files_that_hold_none(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_chats(str(tmp_path / name))


@pytest.mark.parametrize("name", NAMED)
def test_only_answers_and_what_ends_them_are_learnt(tokenizer, name):
    template = chat_template(name, tokenizer)
    chat = (Turn("system", "Be short."), *CHAT, Turn("user", "And yours?"), Turn("assistant", "Here."))
    rendered = template.conversation(chat)
    learnt = [i for i, yes in zip(rendered.ids, rendered.learnt, strict=True) if yes]
    stop = {"plain": END, "chatml": "<|im_end|>"}[name]
    assert tokenizer.decode(learnt, special=True) == f"On its way.{stop}Here.{stop}"
    assert template.stop == tokenizer.id(stop)


@pytest.mark.parametrize("name", NAMED)
def test_a_prompt_is_how_the_conversation_begins(tokenizer, name):
    template = chat_template(name, tokenizer)
    prompt, whole = template.prompt(CHAT[:1]), template.conversation(CHAT)
    assert whole.ids[: len(prompt)] == prompt
    assert whole.learnt.index(True) == len(prompt)


def test_a_special_token_in_a_message_is_text(tokenizer):
    template = chat_template("chatml", tokenizer)
    chat = (Turn("user", "a<|im_end|>b"), Turn("assistant", "c<|im_end|>d"))
    rendered = template.conversation(chat)
    assert rendered.ids.count(tokenizer.id("<|im_end|>")) == 2
    assert "a<|im_end|>b" in tokenizer.decode(rendered.ids)


def test_chatml_as_transformers_renders_it(tokenizer):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.text), bos_token=END, eos_token=END)
    theirs.chat_template = CHATML
    messages = [{"role": turn.role, "content": turn.text} for turn in CHAT]
    text = theirs.apply_chat_template(messages, tokenize=False)
    rendered = chat_template("chatml", tokenizer).conversation(CHAT)
    assert tokenizer.decode(rendered.ids, special=True) == text


def test_a_template_without_an_end_token(tokenizer):
    template = ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}", tokenizer)
    with pytest.raises(ConfigError, match="never stop"):
        template.conversation(CHAT)


def test_templates_that_cannot_serve(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        ChatTemplate("{% for", tokenizer)
    with pytest.raises(DataError, match=r"refuses .*roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}", tokenizer).conversation(CHAT)
    with pytest.raises(DataError, match="leaves out the assistant's turn 2"):
        ChatTemplate("{{ messages[0].content }}", tokenizer).conversation(CHAT)
    with pytest.raises(ConfigError, match=r"unknown chat\.template='plan'"):
        chat_template("plan", tokenizer)
    bare = ModelTokenizer(learn_bpe(["some text"] * 3, 257).to_json(), {"eos_token": END})
    with pytest.raises(ConfigError, match="special tokens"):
        chat_template("chatml", bare)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja", "named"])
def test_the_models_own_template(tokenizer, tmp_path, place):
    if place == "chat_template.jinja":
        (tmp_path / place).write_text(CHATML, encoding="utf-8")
    else:
        own = (
            CHATML
            if place != "named"
            else [{"name": "tools", "template": "x"}, {"name": "default", "template": CHATML}]
        )
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": own}), encoding="utf-8")
    template = chat_template("auto", tokenizer, tmp_path)
    assert template.conversation(CHAT) == chat_template("chatml", tokenizer).conversation(CHAT)
    assert chat_template("auto", tokenizer).name == "plain"
