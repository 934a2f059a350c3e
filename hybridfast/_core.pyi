from typing import Any

import numpy as np
import numpy.typing as npt

def build_info() -> dict[str, Any]: ...
def info_nce(
    queries: npt.NDArray[np.float32],
    passages: npt.NDArray[np.float32],
    temperature: float,
    targets: npt.NDArray[np.int64],
    query_groups: npt.NDArray[np.int32] | None,
    passage_groups: npt.NDArray[np.int32] | None,
    margin: float,
    normalize: bool,
    in_batch: bool,
    group_positives: bool,
    bidirectional: bool,
    bfloat16: bool,
    losses: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32] | None,
    query_grads: npt.NDArray[np.float32] | None,
    passage_grads: npt.NDArray[np.float32] | None,
    tolerance: float,
    threads: int,
) -> tuple[float, float, float]: ...
