"""An evaluation set from one's own rows."""

from __future__ import annotations

import json
from pathlib import Path

from hybridfast.evaluation import rows


def test_rows_of_one_id_answer_each_other(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    versions = [("b", "en"), ("a", "de"), ("b", "de"), ("c", "en"), ("b", "th")]
    path.write_text(
        "".join(
            json.dumps({"id": i, "lang": lang, "query": f"q {i} {lang}", "passage": f"p {i} {lang}"}) + "\n"
            for i, lang in versions
        )
    )
    eval_set = rows.load(path)
    assert eval_set.queries[2] == "q b de"
    assert eval_set.passages[4] == "p b th"
    assert eval_set.languages == ["de", "en", "th"]
    golds = [
        eval_set.gold_indices[begin:end].tolist()
        for begin, end in zip(eval_set.gold_indptr[:-1], eval_set.gold_indptr[1:], strict=True)
    ]
    assert golds == [[0, 2, 4], [1], [0, 2, 4], [3], [0, 2, 4]]
