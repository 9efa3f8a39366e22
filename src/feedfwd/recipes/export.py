"""`feedfwd export`: a trained run in the form of another project, whole or not at all."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from feedfwd.checkpoint import open_up
from feedfwd.data.preprocess import Preprocessor
from feedfwd.errors import ConfigError, RunError, nearest
from feedfwd.recipes.console import Listener
from feedfwd.recipes.export_hf import adapter_folder, chatter_folder, classifier_folder, encoder_folder, writer_folder
from feedfwd.recipes.predictor import Predictor
from feedfwd.recipes.verbs import verb_of

FORMS = {
    "hf": ("pretrain", "finetune", "instruct", "embed"),
    "onnx": ("fit",),
    "peft": ("pretrain", "finetune", "instruct"),
}  # whose runs


def export_run(path: Path, to: str, out: Path, listener: Listener) -> None:
    """Write the run at `path` to the new folder `out`.

    `hf`: what AutoTokenizer and AutoModelForCausalLM or AutoModelForSequenceClassification load, with the same outputs;
    of vectors AutoModel, or sentence-transformers with their pooling.
    `peft`: a run's adapters alone. `onnx`: model.onnx, which takes raw examples as the run's data had them, flattened,
    and gives what `predict_proba` does, or values; and classes.txt. Raises ConfigError for a model that the form can't
    express, naming the setting, and RunError for a folder in use.
    """
    if to not in FORMS:
        raise ConfigError(f"unknown form --to {to}", hint=nearest(to, FORMS))
    verb = verb_of(path)
    if verb not in FORMS[to]:
        others = [form for form, made_by in FORMS.items() if verb in made_by]
        hint = f"this one goes --to {' or '.join(others)}" if others else "give another run"
        what = (
            f"--to {to} is for runs of {' and '.join(f'`{name}`' for name in FORMS[to])}, and {path} is one of `{verb}`"
        )
        raise ConfigError(what, hint=hint)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not empty; nothing is overwritten", hint="choose another --out")
    match to, verb:
        case "hf", "pretrain":
            write = writer_folder(path, listener)
        case "hf", "embed":
            write = encoder_folder(path, listener)
        case "hf", "finetune":
            write = classifier_folder(path, listener)
        case "hf", _:
            write = chatter_folder(path, listener)
        case "peft", _:
            write = adapter_folder(path, listener)
        case _:
            write = _onnx(path, listener)
    _whole(out, write)
    listener.say(f"{path} is in {out}: " + ", ".join(sorted(p.name for p in out.iterdir())))


class Answering(nn.Module):
    """A predictor from raw, flattened examples (N, D) to its answers: scaling and probabilities included."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        assert isinstance(predictor.preprocess, Preprocessor)
        self.model, self.preprocess = predictor.model, predictor.preprocess

    def forward(self, inputs: Tensor) -> Tensor:
        p = self.preprocess
        out = self.model((inputs - p.mean) / p.std)
        if p.classes is None:
            return p.restore(out)
        if out.shape[1] == 1:
            return torch.cat([1 - out.sigmoid(), out.sigmoid()], 1)
        return out.softmax(1)


def _onnx(path: Path, listener: Listener) -> Callable[[Path], object]:
    from feedfwd.interop.onnx import export_onnx

    predictor = Predictor.load(path)
    if not isinstance(predictor.preprocess, Preprocessor):
        raise ConfigError(f"{path} reads raw rows of a table, which --to onnx can't express", hint="use ff.load(run)")
    classes = predictor.classes

    def write(folder: Path) -> None:
        done = export_onnx(Answering(predictor), folder / "model.onnx", torch.zeros(2, predictor.preprocess.width))
        if classes is not None:
            (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        checked = "not checked: onnxruntime is not installed"
        if done.difference is not None:
            checked = f"onnxruntime's answers are within {done.difference:.0e} of torch's"
        listener.say(f"inputs (examples, {predictor.preprocess.width}) as in the data, float32; {checked}")

    return write


def _whole(out: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a neighbour of `out`, and put it in place in one step."""
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        write(part)
        for file in part.rglob("*.safetensors"):
            open_up(file)
        part.replace(out)
    except OSError as error:
        raise RunError(f"{out} can't be written ({error.strerror or error})", hint="choose another --out") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
