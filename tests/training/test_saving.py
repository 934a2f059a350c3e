"""What a run leaves, read by other libraries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from hybridfast.training.config import TrainConfig
from hybridfast.training.loop import train
from hybridfast.training.project import Project
from hybridfast.training.saving import save_model


def test_transformers_loads_it(tiny_xlm_r: Path, tmp_path: Path) -> None:
    """Encoder and tokenizer are at the top of the folder: prompt and mean make the same embeddings."""
    rows = tmp_path / "rows.csv"
    lines = [f"{i},{lang},word {i} of {lang},the {i}" for i in range(12) for lang in ("de", "en")]
    rows.write_text("id,lang,query,passage\n" + "\n".join(lines) + "\n")
    config = TrainConfig(
        model=str(tiny_xlm_r), data=str(rows), batch_size=4, dedup="group", max_steps=2, device="cpu"
    )
    project = Project(config)
    model = project.new_model(0)
    train(model, project.tokens, config)
    save_model(tmp_path / "run", model, config)

    encoder = AutoModel.from_pretrained(tmp_path / "run").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    texts = ["the capital of france ?", "euro"]
    features = tokenizer(["Query: " + text for text in texts], padding=True, return_tensors="pt")
    with torch.no_grad():
        states_BTD = encoder(**features).last_hidden_state
    mask_BT1 = features["attention_mask"][..., None]
    means_BD = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)
    got = SentenceTransformer(str(tmp_path / "run"), device="cpu").encode_query(texts)
    assert np.allclose(got, means_BD.numpy(), atol=1e-6)
    before = AutoModel.from_pretrained(tiny_xlm_r).state_dict()
    assert any(not torch.equal(weight, before[name]) for name, weight in encoder.state_dict().items())
