"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported: progress bars would fill a failure's report
# Before triton is imported: its kernels run on the CPU. With 0, those of test_triton_kernels.py run on a GPU.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Before torch is imported: test processes share the cores, and one's idle threads must not spin on them.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests first, so that at the end no process waits long for another."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: $HYBRIDFAST_DATA, or ../shared/data next to the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("HYBRIDFAST_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set HYBRIDFAST_DATA")
    return folder


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or leaves token caches in the user's home."""
    monkeypatch.setenv("HYBRIDFAST_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def tiny_xlm_r(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder like xlm-roberta-base's, two layers of 32 dimensions, weights random."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    from hybridfast.data import cldr

    texts = [row[side] for row in cldr.training_rows()[:2_200] for side in ("query", "passage")]
    words = sorted({word for text in texts for word in text.lower().replace("?", " ?").split()})
    vocabulary = {
        word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "Query", "Passage", ":", *words])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=40,
    )
    torch.manual_seed(0)
    config = XLMRobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=42,
    )
    folder = tmp_path_factory.mktemp("tiny-xlm-r")
    XLMRobertaModel(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder
