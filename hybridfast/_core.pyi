from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

def build_info() -> dict[str, Any]: ...
def take_over(rates: list[float], lead: float) -> int: ...
def largest_norm(embeddings: NDArray[Any], threads: int) -> tuple[int, float]: ...
def rank_counts(
    queries: NDArray[Any],
    passages: NDArray[Any],
    group_starts: NDArray[np.int64],
    group_rows: NDArray[np.int64],
    gold_indptr: NDArray[np.int64],
    gold_rows: NDArray[np.int64],
    threads: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]: ...
def top_k(
    queries: NDArray[Any],
    passages: NDArray[Any],
    rows: NDArray[np.int64],
    excluded_groups: NDArray[np.int64],
    excluded_indptr: NDArray[np.int64],
    excluded_rows: NDArray[np.int64],
    k: int,
    filter: bool,
    threads: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]: ...
def text_hashes(data: NDArray[np.uint8], indptr: NDArray[np.int64], words: int) -> NDArray[np.uint64]: ...
def texts_are_utf8(data: NDArray[np.uint8], indptr: NDArray[np.int64]) -> bool: ...
def text_json(
    data: NDArray[np.uint8], indptr: NDArray[np.int64], list_indptr: NDArray[np.int64] | None = None
) -> bytes: ...

class WordTable:
    def __init__(self, separators: str, in_runs: bool, kept: bool = False, most: int = 1 << 20) -> None: ...
    def find(
        self, data: NDArray[np.uint8], indptr: NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]]: ...
    def add(self, ids: NDArray[np.int32], indptr: NDArray[np.int64], is_plain: NDArray[np.uint8]) -> None: ...
    def gather(
        self,
        words: NDArray[np.int32],
        indptr: NDArray[np.int64],
        is_whole: NDArray[np.uint8],
        head: NDArray[np.int32],
        tail: NDArray[np.int32],
        room: int,
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...

class Schedule:
    @property
    def epoch(self) -> int: ...

class Corpus:
    def __init__(
        self,
        *,
        version_GL: NDArray[np.int32] | None,
        source_indptr: NDArray[np.int64] | None,
        order_G: NDArray[np.int32] | None,
        present_LW: NDArray[np.uint64] | None,
        versions: int,
        item_G: NDArray[np.int32] | None,
        query_hash_V: NDArray[np.uint64] | None,
        passage_hash_V: NDArray[np.uint64] | None,
        negative_hash_H: NDArray[np.uint64] | None,
        version_indptr: NDArray[np.int64] | None,
        text_indptr: NDArray[np.int64] | None,
        token_ids: NDArray[np.int32] | NDArray[np.uint16] | None,
        pad_id: int,
        files: list[tuple[str, int, int]],
    ) -> None: ...

class PlanOptions:  # the fields bear the names of HybridSampler's options
    def __init__(self) -> None: ...

class GatherOptions:  # likewise
    def __init__(self) -> None: ...

class Sampler:
    def __init__(self, corpus: Corpus, plan: PlanOptions, gather: GatherOptions) -> None: ...
    @property
    def batches(self) -> int: ...
    @property
    def coverage(self) -> list[int]: ...
    @property
    def left_out(self) -> list[str]: ...
    @property
    def errors(self) -> tuple[str, str]: ...
    def schedule(self, epoch: int, alphas: NDArray[np.float64]) -> Schedule: ...
    def build(self, schedule: Schedule, index: int) -> tuple[Any, ...]: ...
    def stats(self) -> dict[str, Any]: ...

class Pipeline:
    def __init__(
        self, sampler: Sampler, schedule: Schedule, first: int, threads: int, prefetch: int
    ) -> None: ...
    def next(self) -> tuple[Any, ...] | None: ...
    def close(self) -> None: ...

def philox(counter: tuple[int, int, int, int], seed: int) -> list[int]: ...
def permutation(n: int, seed: int, cell: int = 0, epoch: int = 0, pass_: int = 0) -> NDArray[np.uint32]: ...
def info_nce(
    queries: NDArray[Any],
    passages: NDArray[Any],
    temperature: float,
    targets: NDArray[np.int64] | None,
    query_groups: NDArray[np.int32] | None,
    passage_groups: NDArray[np.int32] | None,
    margin: float,
    normalize: bool,
    in_batch: bool,
    group_positives: bool,
    bidirectional: bool,
    bfloat16: bool,
    losses: NDArray[np.float32] | None,
    weights: NDArray[np.float32] | float | None,
    query_grads: NDArray[np.float32] | None,
    passage_grads: NDArray[np.float32] | None,
    tolerance: float,
    threads: int,
) -> tuple[float, float, float, float]: ...
def dropout(
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    heads: NDArray[np.int64] | None,
    first: NDArray[np.int64] | None,
    dropout: tuple[int, int, float],  # key, how many of 65536 are dropped, factor of the others
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def attend(
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
    before: int,
    after: int,
    scale: float,
    dropout: tuple[int, int, float] | None,
    out: NDArray[np.float32],
    threads: int,
) -> None: ...
def attend_gradients(
    queries: NDArray[np.float32],
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    starts: NDArray[np.int64],
    places: NDArray[np.int64],
    before: int,
    after: int,
    scale: float,
    dropout: tuple[int, int, float] | None,
    out_gradient: NDArray[np.float32],
    query_gradient: NDArray[np.float32],
    key_gradient: NDArray[np.float32],
    value_gradient: NDArray[np.float32],
    threads: int,
) -> None: ...
