"""MNIST, 784-128-128-10: feedfwd beside the article's loop, Keras on JAX and scikit-learn, alternating in one run.

    python benchmarks/mnist.py --data FOLDER [--rounds 3] [--both] [--keras PYTHON] [--json FILE]

FOLDER holds mnist/ (IDX files). Each contestant runs in a process of its own, in turn, `--rounds` times. Keras runs
where it can be imported, or in the interpreter that `--keras` names. `--both` adds the column of a machine without
AVX-512 and bf16 products. Two questions: seconds an epoch of the article's recipe (batch 64, Adam 1e-3, fp32), and what
the article's ten epochs take beside `feedfwd fit mnist --effort quick`, with the scores on the test part.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
EPOCHS = 3  # of the article's recipe, for seconds an epoch


def arrays(data: Path):
    """(60000, 28, 28) uint8, labels, (10000, 28, 28) uint8, labels."""
    from feedfwd.data.readers import load

    train, test = load("mnist", data_dir=data)
    return train.inputs.numpy(), train.targets.numpy(), test.inputs.numpy(), test.targets.numpy()


# --- the contestants: each prints one line of JSON ----------------------------------------------------------------


def article(data: Path, epochs: int, seed: int) -> dict:
    """What tutorials teach: a DataLoader that turns one PIL image after the other into a tensor."""
    import numpy as np
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    x, y, x_test, y_test = arrays(data)

    class Digits(Dataset):
        def __len__(self):
            return len(x)

        def __getitem__(self, i):
            pixels = np.array(Image.fromarray(x[i]))
            return torch.from_numpy(pixels).unsqueeze(0).float().div(255), int(y[i])

    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    loader = DataLoader(Digits(), batch_size=64, shuffle=True)
    began = time.perf_counter()
    for _ in range(epochs):
        for inputs, labels in loader:
            optimizer.zero_grad()
            criterion(model(inputs), labels).backward()
            optimizer.step()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        right = model(torch.from_numpy(x_test).unsqueeze(1).float() / 255).argmax(1) == torch.from_numpy(y_test)
    return {"seconds": seconds, "epoch": seconds / epochs, "accuracy": right.float().mean().item()}


def ours(data: Path, *flags: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "feedfwd.cli", "fit", "mnist", "--data-dir", str(data), "--run", str(run)]
        subprocess.run([*command, *flags], check=True, stdout=subprocess.DEVNULL)
        result = json.loads((run / "result.json").read_text())
    seconds = result["seconds"]["train"]
    return {"seconds": seconds, "accuracy": result["test"]["accuracy"], "precision": result["environment"]["precision"]}


def feedfwd_epoch(data: Path, seed: int) -> dict:
    sets = {
        "train.batch_size": 64,
        "train.epochs": EPOCHS,
        "optimizer.name": "adam",
        "optimizer.lr": 0.001,
        "optimizer.weight_decay": 0.0,
        "schedule.name": "constant",
        "train.precision": "fp32",
        "train.ema": 0.0,
        "data.shift": 0,
        "loss.label_smoothing": 0.0,
        "ffn.init": "auto",
    }
    flags = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    found = ours(data, "--effort", "quick", "--seed", str(seed), *flags)
    return found | {"epoch": found["seconds"] / EPOCHS}


def keras(data: Path, seed: int) -> dict:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras as k
    import numpy as np

    saved = np.load(data)
    x, y = (saved["x"].reshape(-1, 784) / 255).astype("float32"), saved["y"].astype("int32")
    k.utils.set_random_seed(seed)
    layers = [k.layers.Dense(128, "relu"), k.layers.Dense(128, "relu"), k.layers.Dense(10)]
    model = k.Sequential([k.Input((784,)), *layers])
    model.compile(
        k.optimizers.Adam(1e-3), k.losses.SparseCategoricalCrossentropy(from_logits=True), steps_per_execution=32
    )
    model.fit(x, y, batch_size=64, epochs=1, verbose=0)  # compiles
    began = time.perf_counter()
    model.fit(x, y, batch_size=64, epochs=EPOCHS, verbose=0)
    return {"epoch": (time.perf_counter() - began) / EPOCHS}


def sklearn(data: Path, seed: int) -> dict:
    import warnings

    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")  # it says that so few epochs don't converge
    x, y, _, _ = arrays(data)
    model = MLPClassifier((128, 128), batch_size=64, max_iter=EPOCHS, random_state=seed)
    began = time.perf_counter()
    model.fit(x.reshape(-1, 784) / 255.0, y)
    return {"epoch": (time.perf_counter() - began) / EPOCHS}


# --- running them in turn -----------------------------------------------------------------------------------------


def call(python: str, environment: dict, *words: str) -> dict | None:
    env = {**os.environ, **environment}
    began = time.perf_counter()
    done = subprocess.run([python, __file__, *words], env=env, capture_output=True, text=True)
    if done.returncode:
        print(f"  {words[1]} failed: {done.stderr.strip().splitlines()[-1]}", flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1]) | {"process": time.perf_counter() - began}


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} … {max(values):.3f})"


def column(title: str, environment: dict, options: argparse.Namespace) -> dict:
    print(f"\n{title}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "train.npz"
        if options.keras:
            import numpy as np

            x, y, _, _ = arrays(options.data)
            np.savez(saved, x=x, y=y)
        found: dict[str, list[dict]] = {}
        for round_ in range(options.rounds):
            contestants = {
                "feedfwd": (sys.executable, ["--run", "feedfwd_epoch", str(options.data)]),
                "Keras on JAX": (options.keras, ["--run", "keras", str(saved)]),
                "scikit-learn": (sys.executable, ["--run", "sklearn", str(options.data)]),
                "article's loop": (sys.executable, ["--run", "article", str(options.data)]),
                "quick": (sys.executable, ["--run", "quick", str(options.data)]),
            }
            for name, (python, words) in contestants.items():
                if python and (result := call(python, environment, *words, "--seed", str(round_))):
                    found.setdefault(name, []).append(result)
                    print(f"  round {round_ + 1} {name}: {result}", flush=True)
    print("\n  seconds an epoch, batch 64, Adam 1e-3, fp32")
    mine = [r["epoch"] for r in found["feedfwd"]]
    for name in ("feedfwd", "Keras on JAX", "scikit-learn", "article's loop"):
        if name in found:
            theirs = [r["epoch"] for r in found[name]]
            ratios = [a / b for a, b in zip(mine, theirs, strict=False)]
            print(f"  {name:16} {spread(theirs)}   feedfwd takes {spread(ratios)} of it")
    slow, fast = found["article's loop"], found["quick"]
    print("\n  the article's ten epochs, and `feedfwd fit mnist --effort quick`")
    print(f"  article          {spread([r['seconds'] for r in slow])} s, test {spread([r['accuracy'] for r in slow])}")
    print(f"  feedfwd          {spread([r['seconds'] for r in fast])} s, test {spread([r['accuracy'] for r in fast])}")
    for what in ("seconds", "process"):
        print(f"  {what:16} 1/{spread([a[what] / b[what] for a, b in zip(slow, fast, strict=False)])}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("FEEDFWD_DATA"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--both", action="store_true", help="also as a machine without AVX-512 and bf16 products")
    parser.add_argument("--keras", help="a Python that has keras and jax")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        name, data = options.run
        match name:
            case "article":
                found = article(Path(data), 10, options.seed)
            case "quick":
                found = ours(Path(data), "--effort", "quick", "--seed", str(options.seed))
            case _:
                found = {"feedfwd_epoch": feedfwd_epoch, "keras": keras, "sklearn": sklearn}[name](
                    Path(data), options.seed
                )
        print(json.dumps(found))
        return
    if options.data is None:
        parser.error("--data FOLDER, or FEEDFWD_DATA, must name the folder that holds mnist/")
    columns = {"as it is": {}} | ({"without AVX-512 and bf16": AVX2} if options.both else {})
    found = {title: column(title, environment, options) for title, environment in columns.items()}
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
