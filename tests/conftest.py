"""What several test rooms share."""

import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Networks here are tiny: one thread is fastest, and what a second one would wait for is another worker's test. Read
# when torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Numbers are compared to the bit and to what is said of a CPU: a GPU is for `pytest tests/test_gpu.py` alone.
if "PYTEST_XDIST_WORKER" not in os.environ and not any("test_gpu" in argument for argument in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The same examples on every run, so that no change is blamed for chance; HYPOTHESIS_PROFILE=search looks further.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("search")
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, which are not part of the project: tests that need it skip where it is absent."""
    path = Path(os.environ.get("FEEDFWD_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"real data not found at {path}; set FEEDFWD_DATA to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers' with a random BERT of two layers, whose words are letters."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece
    from tokenizers.processors import BertProcessing
    from transformers import BertConfig, BertModel, set_seed

    folder = tmp_path_factory.mktemp("tiny-bert")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    engine = Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    engine.normalizer, engine.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    engine.post_processor = BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    set_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).eval().save_pretrained(folder)
    engine.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    modules = [{"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{t}"}
               for i, (p, t) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    return folder
