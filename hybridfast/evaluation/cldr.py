"""The embedded corpus's held-out facts as an evaluation set; `hybridfast.data.cldr` says what a fact is."""

from __future__ import annotations

import numpy as np

from hybridfast.data.cldr import LANGUAGES, all_facts, passage_text, query_text, split
from hybridfast.evaluation.evalset import EvalSet

__all__ = ["eval_set"]


def eval_set() -> EvalSet:
    """The held-out facts' questions in every language over the passages of all facts, trained ones too."""
    _, held_out_facts = split()
    facts = all_facts()
    row_of = {fact: i * len(LANGUAGES) for i, fact in enumerate(facts)}
    first_gold_Q = np.repeat([row_of[fact] for fact in held_out_facts], len(LANGUAGES)).astype(np.int64)
    gold_QL = first_gold_Q[:, None] + np.arange(len(LANGUAGES))
    return EvalSet(
        name="cldr",
        queries=[query_text(fact, language) for fact in held_out_facts for language in LANGUAGES],
        query_languages=list(LANGUAGES) * len(held_out_facts),
        items=[fact.id for fact in held_out_facts for _ in LANGUAGES],
        passages=[passage_text(fact, language) for fact in facts for language in LANGUAGES],
        passage_languages=list(LANGUAGES) * len(facts),
        gold_indptr=np.arange(len(gold_QL) + 1, dtype=np.int64) * len(LANGUAGES),
        gold_indices=gold_QL.ravel(),
    )
