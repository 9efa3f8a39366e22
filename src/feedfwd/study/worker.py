"""A process that takes part in a study: `python -m feedfwd.study.worker URL NAME FOLDER NUMBER`."""

import sys
from pathlib import Path


def main(url: str, name: str, folder: str, number: str) -> int:
    try:
        import torch

        from feedfwd.study.shared import Shared

        torch.set_num_threads(1)  # the workers are as many as the cores
        Shared.join(url, name, Path(folder), seed=int(number)).work()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.path.append(str(Path.cwd()))  # a layer of the user's own lies where they work
    sys.exit(main(*sys.argv[1:]))
