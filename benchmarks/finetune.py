"""Fine-tuning a BERT to labels beside transformers' Trainer and peft: texts a second, same model, data and batch.

    python benchmarks/finetune.py MODEL train.csv             # all weights: ours, the Trainer at its best, as it comes
    python benchmarks/finetune.py MODEL train.csv --lora      # low-rank adapters on all maps, rank 16: ours and peft
    python benchmarks/finetune.py MODEL train.csv --laptop    # as a machine without AVX-512 would run it

MODEL is a folder of Hugging Face's. All sides run in one process, alternating; each round does `--steps` updates, of
which the first five are not counted. "best": bf16, texts of about one length in a batch, fused AdamW; "default": what
TrainingArguments set when only the batch size is said. Accuracy is what `feedfwd finetune` reports of a whole run.
"""

import argparse
import logging
import os
import sys
import tempfile

if "--laptop" in sys.argv:  # read when torch is imported
    os.environ |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from feedfwd.config_finetune import FinetuneConfig
from feedfwd.recipes.texts import PreparedTexts, prepare_texts
from feedfwd.train.loop import train

UNCOUNTED = 5


def ours(options: argparse.Namespace) -> Callable[[], float]:
    """Texts a second of the loop that the recipe runs."""
    config = FinetuneConfig(source=options.data, pretrained=options.model, method="lora" if options.lora else "full")
    p: PreparedTexts = prepare_texts(config.with_("train.batch_size", options.batch))
    optimizer, batches = p.optimizer(p.trained), p.batches()

    def go() -> float:
        times = []
        for _ in train(p.trained, batches, p.loss, optimizer, steps=options.steps, precision=p.precision):
            times.append(time.perf_counter())
        return rate(times, options.batch)

    return go


def trainer(options: argparse.Namespace, texts: list[str], labels: list[int], best: bool) -> Callable[[], float]:
    """The same of a transformers Trainer, with peft's adapters where asked for."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1 + max(labels)
    )
    if options.lora:
        from peft import LoraConfig, get_peft_model

        maps = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
        model = get_peft_model(model, LoraConfig("SEQ_CLS", r=16, lora_alpha=32, target_modules=maps))
    rows = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    data: Any = [{"input_ids": ids, "labels": label} for ids, label in zip(rows, labels, strict=True)]
    chosen: dict[str, Any] = {}
    if best:
        chosen = {"bf16": True, "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"}
    times: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    def go() -> float:
        times.clear()
        with tempfile.TemporaryDirectory() as folder:
            arguments = transformers.TrainingArguments(
                folder, use_cpu=True, max_steps=options.steps, per_device_train_batch_size=options.batch,
                save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no", **chosen,
            )  # fmt: skip
            collator = transformers.DataCollatorWithPadding(tokenizer)
            transformers.Trainer(
                model, arguments, train_dataset=data, data_collator=collator, callbacks=[Clock()]
            ).train()
        return rate(times, options.batch)

    return go


def rate(times: list[float], batch: int) -> float:
    return batch * (len(times) - UNCOUNTED) / (times[-1] - times[UNCOUNTED - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--laptop", action="store_true")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    from feedfwd.data.text_tables import read_table

    table = read_table(options.data)
    names = sorted(set(table.labels or ()))
    texts, labels = list(table.texts), [names.index(label) for label in table.labels or ()]
    name = "peft" if options.lora else "Trainer"
    sides = {
        "feedfwd": ours(options),
        f"{name}, best": trainer(options, texts, labels, best=True),
        f"{name}, default": trainer(options, texts, labels, best=False),
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side, go in sides.items():
            found[side].append(go())
    print(f"{torch.get_num_threads()} threads, batches of {options.batch}, {options.rounds} rounds")
    for side, rates in found.items():
        ratios = sorted(a / b for a, b in zip(found["feedfwd"], rates, strict=True))
        middle = statistics.median(ratios)
        span = f"{ratios[0]:.2f} – {ratios[-1]:.2f}"
        print(f"{side:<18}{statistics.median(rates):8.0f} texts/s   ours {middle:.2f}× ({span})")


if __name__ == "__main__":
    main()
