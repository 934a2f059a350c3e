"""Tensors are passed as their addresses, 0 for none, and streams as their handles."""

class Block:
    """`blocks.Block`: rows of bfloat16 or float16 at multiples of 16 bytes, so many elements apart."""

    def __init__(
        self,
        *,
        device: int,
        queries: int,
        query_stride: int,
        query_count: int,
        passages: int,
        passage_stride: int,
        passage_count: int,
        dim: int,
        dtype: str,
        inverse_temperature: int,
        targets: int,
        query_groups: int,
        passage_groups: int,
        excluded: int,
        by_group: bool,
    ) -> None: ...

class Sweep:
    """The queries first to last - 1 with all passages, in so many splits of so many tiles each.

    `only` has a byte for each query of the block: 0 where it is not asked for.
    """

    def __init__(self, first: int, last: int, splits: int, tiles_each: int, only: int = 0) -> None: ...

def tile(device: int) -> tuple[int, int, int]:
    """Queries and passages of a tile on that device, and the column parts that its queries make."""

def negative_sums(block: Block, sweep: Sweep, row_parts: int, column_parts: int, stream: int) -> None: ...
def form_exps(
    block: Block, sweep: Sweep, wanted: int, out: int, out_stride: int, row_parts: int, stream: int
) -> None: ...
def form_weights(
    block: Block,
    sweep: Sweep,
    margin: float,
    row_sums: int,
    row_weights: int,
    column_sums: int,
    column_weights: int,
    weights: int,
    out: int,
    out_stride: int,
    stream: int,
) -> None: ...
