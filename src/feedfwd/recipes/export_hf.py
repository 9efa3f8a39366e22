"""Fine-tuned runs as Hugging Face's: a folder that AutoModel reads, or the adapters alone for peft."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from feedfwd.checkpoint import Run
from feedfwd.data.model_tokenizer import ModelTokenizer
from feedfwd.errors import ConfigError, RunError
from feedfwd.ffn.parts import Linear
from feedfwd.interop.families import FAMILIES, family_of
from feedfwd.interop.family import Family
from feedfwd.interop.huggingface import export
from feedfwd.interop.peft import save_peft
from feedfwd.models.bag import Bag
from feedfwd.models.encoder import Encoder
from feedfwd.models.mlp import PlainLayer
from feedfwd.models.similarity import TextVectors
from feedfwd.models.transformer import Transformer, build
from feedfwd.recipes.adapters import NAME, Kept
from feedfwd.recipes.chatter import Chatter
from feedfwd.recipes.classifier import TextClassifier, TokenReader
from feedfwd.recipes.console import Listener
from feedfwd.recipes.goals import Number, SeveralLabels
from feedfwd.recipes.searcher import TextEncoder
from feedfwd.recipes.writer import Writer

Write = Callable[[Path], object]


# --- a model --------------------------------------------------------------------------------------------------------


def writer_folder(path: Path, listener: Listener) -> Write:
    """What AutoModelForCausalLM, or AutoModelForMaskedLM, and AutoTokenizer load."""
    writer = Writer.load(path)
    model, said = writer.model, writer.about or {}
    if not model.causal and not said:  # BERT's kind of family is for models that came as one
        what = (
            "a run of train.objective=masked sees both sides of a token (model.causal=False), and is of no family here"
        )
        raise ConfigError(what, hint="export one of train.objective=next, or use ff.load(run).model")
    family = _family(str(said.get("family")), model)
    _say_family(listener, family, said.get("family"), f"{_loads(model)} and AutoTokenizer load it")
    if model.end is not None:
        listener.say(
            "note: with data.separate no token saw another document; no family knows of it: give one at a time"
        )
    special = said.get("special") or writer.tokenizer.special_tokens()
    return lambda folder: export(
        model, folder, tokenizer=writer.tokenizer.to_json(), special_tokens=special, end=writer.tokenizer.end,
        family=family.name,
    )  # fmt: skip


def _loads(model: Transformer) -> str:
    """Which of transformers' classes."""
    return "AutoModelForCausalLM" if model.causal else "AutoModelForMaskedLM"


def classifier_folder(path: Path, listener: Listener) -> Write:
    """What AutoModelForSequenceClassification loads, with the run's own probabilities or numbers; where its family has
    no such head, what sentence-transformers loads, which pools as the run does and gives the outputs for a vector.
    """
    found = TextClassifier.load(path)
    goal, reader = found.goal, found.reader
    problem = "regression" if isinstance(goal, Number) else "single_label_classification"
    problem = "multi_label_classification" if isinstance(goal, SeveralLabels) else problem
    try:
        model = with_family_head(found)
    except ConfigError as other:
        if (layers := dense_layers(found)) is None:
            raise
        assert isinstance(reader, TokenReader) and isinstance(found.model, Encoder)
        body = found.model.backbone
        family = _family(str(_about(found).get("family")), body)
        listener.say(f"{other.message}; {other.hint} to have that")
        listener.say(
            f"family {family.name}: SentenceTransformer(…).encode(texts) gives "
            f"{'numbers' if isinstance(goal, Number) else 'logits'}, AutoModel and AutoTokenizer load the body"
        )
        _say_more(found, reader, listener)
        names = {"id2label": {str(i): name for i, name in enumerate(goal.classes)}} if goal.classes else {}
        return _modules(body, family, reader, found.model.pooling, layers, names | {"problem_type": problem})
    family = _family(str(_about(found).get("family")), model)
    said = "AutoModelForSequenceClassification and AutoTokenizer load it"
    _say_family(listener, family, _about(found).get("family"), said)
    assert isinstance(reader, TokenReader)
    _say_more(found, reader, listener)
    tokenizer = reader.tokenizer
    return lambda folder: export(
        model,
        folder,
        tokenizer=with_its_ends(tokenizer),
        special_tokens=tokenizer.special,
        pad=tokenizer.pad,
        family=family.name,
        labels=goal.classes or None,
        longest=reader.longest,
        problem=problem,
    )


def _say_more(found: TextClassifier, reader: TokenReader, listener: Listener) -> None:
    """What its outputs are, and where they are others than the run's."""
    if found.verdict is not None:
        listener.say(f"its logits are divided by the run's temperature, {found.verdict.temperature:.3g}")
    if reader.windows > 1:
        listener.say(f"note: transformers cuts texts at {reader.longest} tokens, and reads them in no windows")


def chatter_folder(path: Path, listener: Listener) -> Write:
    """What AutoModelForCausalLM and AutoTokenizer load, the chat template included."""
    chatter = Chatter.load(path)
    model, tokenizer, template = chatter.model, chatter.tokenizer, chatter.template
    said = json.loads(Run(path).preprocess_file.read_text(encoding="utf-8"))
    family = _family(str(said.get("family")), model)
    loads = "AutoModelForCausalLM and AutoTokenizer load it, with its chat template"
    _say_family(listener, family, said.get("family"), loads)

    def write(folder: Path) -> None:
        export(
            model, folder, tokenizer=tokenizer.text, special_tokens=tokenizer.special, end=template.stop,
            pad=tokenizer.pad, family=family.name,
        )  # fmt: skip
        (folder / "chat_template.jinja").write_text(template.source, encoding="utf-8")

    return write


POOLED = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}  # sentence-transformers' words


def encoder_folder(path: Path, listener: Listener) -> Write:
    """What AutoModel loads, with the same states, and sentence-transformers with the run's pooling as well."""
    found = TextEncoder.load(path)
    model, reader = found.model, found.reader
    if not isinstance(model, TextVectors) or not isinstance(reader, TokenReader):
        raise ConfigError("a bag of n-grams is of no family of Hugging Face's", hint="use it by ff.load(run)")
    about = Run(path).read_json(Run(path).preprocess_file)["pretrained"]
    family, body = _family(str(about.get("family")), model.backbone), model.backbone
    _say_family(listener, family, about.get("family"), "AutoModel, AutoTokenizer and sentence-transformers load it")
    return _modules(body, family, reader, model.pooling, None)


Layer = tuple[dict[str, Tensor], str]  # weight and bias of a linear map, and the module of what follows it


def _modules(
    body: Transformer,
    family: Family,
    reader: TokenReader,
    pooling: str,
    layers: Sequence[Layer] | None,
    about: Mapping[str, object] = {},
) -> Write:
    """A body with sentence-transformers' files around it: pooled, and then scaled to length 1 or through `layers`.
    config.json says `about` as well.
    """
    after = ["Normalize"] if layers is None else ["Dense"] * len(layers)
    kinds = [("Transformer", ""), *((kind, f"{i}_{kind}") for i, kind in enumerate(["Pooling", *after], 1))]
    modules = [
        {"idx": i, "name": str(i), "path": place, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, place) in enumerate(kinds)
    ]
    modes = {f"pooling_mode_{word}": how == pooling for how, word in POOLED.items()}
    texts: dict[str, object] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": reader.longest, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": body.width} | modes,
    }
    for i, (state, activation) in enumerate(layers or (), 2):
        outputs, inputs = state["weight"].shape
        sizes = {"in_features": inputs, "out_features": outputs, "bias": "bias" in state}
        texts[f"{i}_Dense/config.json"] = sizes | {"activation_function": activation}

    def write(folder: Path) -> None:
        tokenizer = reader.tokenizer
        export(
            body, folder, tokenizer=with_its_ends(tokenizer), special_tokens=tokenizer.special, pad=tokenizer.pad,
            family=family.name, longest=reader.longest,
        )  # fmt: skip
        for _, place in kinds:
            (folder / place).mkdir(exist_ok=True)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | dict(about)
        for name, value in (texts | {"config.json": config}).items():
            (folder / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for i, (state, _) in enumerate(layers or (), 2):
            tensors = {f"linear.{name}": tensor.detach().contiguous().clone() for name, tensor in state.items()}
            save_file(tensors, folder / f"{i}_Dense" / "model.safetensors")

    return write


def dense_layers(found: TextClassifier) -> list[Layer] | None:
    """The head as linear maps with an activation of torch's behind each; None where it is more than that."""
    if isinstance(found.model, Bag) or found.model.bag is not None:
        return None
    mlp = found.model.mlp
    layers: list[Layer] = []
    for block in mlp.blocks:
        if not isinstance(block, PlainLayer) or not isinstance(block.norm, nn.Identity):
            return None
        kind = type(block.activation)
        plain = kind.__module__.startswith("torch.nn.modules.") and repr(block.activation) == repr(kind())
        if not isinstance(block.linear, Linear) or not plain:
            return None
        layers.append((block.linear.state_dict(), f"{kind.__module__}.{kind.__name__}"))
    return [*layers, (_scaled(found, mlp.head), "torch.nn.modules.linear.Identity")]


def with_family_head(found: TextClassifier) -> Transformer:
    """A classifier as the families have it: an encoder's first state through a tanh layer as wide as the model, or a
    decoder's last state, and one linear map. Raises ConfigError naming the setting that makes it another.
    """
    model = found.model
    if isinstance(model, Bag):
        raise ConfigError("a bag of n-grams is of no family of Hugging Face's", hint="use it by ff.load(run)")
    if model.bag is not None:
        what = "no family of Hugging Face's has a bag of n-grams beside it (encoder.ngrams=true)"
        raise ConfigError(what, hint="use it by ff.load(run), or train without it")
    b, mlp, width = model.backbone, model.mlp, model.backbone.width
    wanted: dict[str, tuple[object, object]] = {
        "encoder.pooling": (model.pooling, "last" if b.causal else "cls"),
        "encoder.hidden": (list(mlp.sizes[1:-1]), [] if b.causal else [width]),
    }
    first = next(iter(mlp.blocks), None)
    if not b.causal:
        wanted["ffn.activation"] = found.config.ffn.activation, "tanh"
        wanted["ffn.kind"] = found.config.ffn.kind, "dense"
    wanted["ffn.bias"] = mlp.head.bias is not None, not b.causal
    wrong = [(setting, own, theirs) for setting, (own, theirs) in wanted.items() if own != theirs]
    if wrong:
        what = ", ".join(f"{setting}={_word(own)}" for setting, own, _ in wrong)
        sets = " ".join(f"--set {setting}={_word(theirs)}" for setting, _, theirs in wrong)
        kind = "decoder" if b.causal else "encoder"
        raise ConfigError(f"no {kind} of Hugging Face's classifies with {what}", hint=f"train with {sets}")
    last = {"head": "classes", "classes": mlp.sizes[-1], "pooler": not b.causal}
    whole = build(b.settings | last)
    state: dict[str, Tensor] = dict(b.state_dict())
    state |= {f"head.{name}": tensor for name, tensor in _scaled(found, mlp.head).items()}
    if isinstance(first, PlainLayer):
        state |= {f"pooler.{name}": tensor for name, tensor in first.linear.state_dict().items()}
    whole.load_state_dict(state)
    return whole.eval()


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _scaled(found: TextClassifier, head: nn.Module) -> dict[str, Tensor]:
    """The last map, what the run does to its outputs taken in: the temperature, or a number's mean and deviation."""
    goal, state = found.goal, head.state_dict()
    if isinstance(goal, Number):
        if "bias" not in state:
            what = f"a decoder's classifier has no bias for the mean of {goal.name}"
            raise ConfigError(what, hint="use it by ff.load(run), or train an encoder")
        return {"weight": state["weight"] * goal.std, "bias": state["bias"] * goal.std + goal.mean}
    temperature = 1.0 if found.verdict is None else found.verdict.temperature
    return {name: tensor / temperature for name, tensor in state.items()}


def with_its_ends(tokenizer: ModelTokenizer) -> str:
    """tokenizer.json, which itself puts around a text what the model was trained with."""
    if not (tokenizer.before or tokenizer.after):
        return tokenizer.text
    from tokenizers import Tokenizer
    from tokenizers.processors import Sequence, TemplateProcessing

    engine = Tokenizer.from_str(tokenizer.text)
    names = {i: str(engine.id_to_token(i)) for i in (*tokenizer.before, *tokenizer.after)}
    around = TemplateProcessing(
        single=[*(names[i] for i in tokenizer.before), "$A", *(names[i] for i in tokenizer.after)],
        special_tokens=[(name, i) for i, name in names.items()],
    )
    engine.post_processor = around if engine.post_processor is None else Sequence([engine.post_processor, around])
    text: str = engine.to_str(pretty=True)
    return text


def _family(read_as: str, model: Transformer) -> Family:
    """The one it was read as, or the first that can express it."""
    family = FAMILIES.get(read_as)
    return family if family is not None and not family.unable(model) else family_of(model)


def _say_family(listener: Listener, family: Family, read_as: object, loads: str) -> None:
    listener.say(f"family {family.name}: {loads}")
    if family.name == "qwen2" != read_as:
        listener.say(
            "note: transformers 5 reads the words of every Qwen2 model as Qwen's own: where AutoTokenizer gives other "
            "tokens, take PreTrainedTokenizerFast.from_pretrained"
        )


def _about(found: TextClassifier) -> dict[str, object]:
    assert found.run is not None
    run = Run(found.run)
    about: dict[str, object] = run.read_json(run.preprocess_file).get("pretrained") or {}
    return about


# --- adapters ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """What adapters are given to: a network of the base's form, its weights not needed."""

    model: Transformer
    family: Family
    loads: str  # which of transformers' classes
    notes: tuple[str, ...] = ()


def adapter_folder(path: Path, listener: Listener) -> Write:
    """adapter_config.json and adapter_model.safetensors, with the classifying head where the family has one like it."""
    kept = Kept.of(path)
    if kept is None:
        hint = "a run of --method lora or dora has some; this one goes --to hf"
        raise RunError(f"{path} has no adapters", hint=hint)
    run = Run.open(path)
    match run.about().get("verb"):
        case "pretrain":
            base = _of_writer(path)
        case "instruct":
            base = _of_chatter(path)
        case _:
            base = _of_classifier(path)
    trained = [p for p in base.model.parameters() if p.requires_grad]
    with torch.no_grad():
        kept.give(base.model)
    for parameter in trained:
        parameter.requires_grad_(True)
    for note in base.notes:
        listener.say(f"note: {note}")
    place = kept.base
    if (Path(place).expanduser() / "config.toml").is_file():
        listener.say(f"{place} is a run of ours: peft needs it as feedfwd export {place} --to hf writes it")
    listener.say(f"PeftModel.from_pretrained({base.loads}.from_pretrained({place!r}), …) has the run's outputs")
    return lambda folder: save_peft(base.model, folder, NAME, family=base.family, base=place)


def _of_writer(path: Path) -> Base:
    writer = Writer.load(path)
    family = _family(str((writer.about or {}).get("family")), writer.model)
    return Base(writer.model.requires_grad_(False), family, _loads(writer.model))


def _of_chatter(path: Path) -> Base:
    chatter = Chatter.load(path)
    said = json.loads(Run(path).preprocess_file.read_text(encoding="utf-8"))
    model = chatter.model.requires_grad_(False)
    return Base(model, _family(str(said.get("family")), model), "AutoModelForCausalLM")


def _of_classifier(path: Path) -> Base:
    found = TextClassifier.load(path)
    try:
        model = with_family_head(found)
    except ConfigError as error:
        assert isinstance(found.model, Encoder)
        body = build(found.model.backbone.settings)
        family = _family(str(_about(found).get("family")), body)
        note = f"the head is not in it ({error.message}): it stays in {path}, and these are the adapters of the body"
        return Base(body.requires_grad_(False), family, "AutoModel", (note,))
    model.requires_grad_(False)
    for part in filter(None, (model.head, model.pooler)):
        part.requires_grad_(True)
    family = _family(str(_about(found).get("family")), model)
    return Base(model, family, "AutoModelForSequenceClassification")
