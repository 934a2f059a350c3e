from typing import Any

import numpy as np
from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
def largest_norm(embeddings: NDArray[Any]) -> tuple[int, float]: ...
def rank_counts(
    queries: NDArray[Any],
    passages: NDArray[Any],
    group_starts: NDArray[np.int64],
    group_rows: NDArray[np.int64],
    gold_indptr: NDArray[np.int64],
    gold_rows: NDArray[np.int64],
    threads: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]: ...
