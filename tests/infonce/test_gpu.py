"""What the GPU backends share, with weights formed in plain torch: no GPU is needed."""

import pytest
import torch

from hybridfast.infonce import gpu, torch_kernels
from hybridfast.infonce.blocks import Block, Sums, Weights


def block(queries=300, passages=150, dim=12, dtype=torch.float32, targets=None):
    """Targets repeat, since there are more queries than passages."""
    generator = torch.Generator().manual_seed(0)
    q, p = (torch.randn(rows, dim, generator=generator).to(dtype) for rows in (queries, passages))
    if targets is None:
        targets = torch.randint(passages, (queries,), generator=generator)
    return Block(q, p, torch.tensor(2.0), 0.3, targets, None, None, False, None)


def doubled(block):
    rows = (block.queries.double(), block.passages.double(), block.temperature.double())
    return block._replace(queries=rows[0], passages=rows[1], temperature=rows[2])


def doubles(tensors):
    return type(tensors)._make(None if x is None else x.double() for x in tensors)


def sums_and_weights(block):
    weights_Q = torch.rand(len(block.queries), dtype=block.temperature.dtype)
    sums = torch_kernels.negative_sums(block, True)
    return sums, torch_kernels.positive_costs(block, sums, weights_Q)[1]


def form_weights(block, rows, sums, weights, out_RN):
    products_RN = block.queries[rows].float() @ block.passages.float().T
    logits_RN = products_RN / block.temperature
    positive_RN = torch.arange(len(block.passages)) == block.targets[rows, None]
    wanted_RN = (products_RN - block.margin) / block.temperature
    row_sums_R, columns_N = sums.rows_Q[rows, None], sums.columns_N
    formed_RN = weights.rows_Q[rows, None] * torch.exp(logits_RN - row_sums_R)
    formed_RN += weights.columns_N * torch.exp(logits_RN - columns_N)
    off_RN = torch.sigmoid(row_sums_R - wanted_RN) + torch.sigmoid(columns_N - wanted_RN)
    formed_RN = torch.where(positive_RN, -weights.losses_Q[rows, None] * off_RN, formed_RN)
    out_RN.copy_(formed_RN / block.temperature)


@pytest.mark.parametrize("needs", [(True, True), (True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["float32", "float16", "bfloat16"]
)
def test_gradients_by_chunks(monkeypatch, needs, dtype):
    """64 kB hold 90 or more of the 300 queries' weights; the temperature's gradient is there in any case."""
    monkeypatch.setattr(gpu, "WORKSPACE", 1 << 16)
    chunks = []

    def recorded(block, rows, *arguments):
        assert arguments[-1].stride(0) % 8 == 0
        assert arguments[-1].stride(1) == 1
        assert arguments[-1].dtype == dtype
        assert arguments[-1].nbytes <= gpu.WORKSPACE
        chunks.append(rows)
        form_weights(block, rows, *arguments)

    problem = block(dtype=dtype)
    given = sums_and_weights(problem)
    got = gpu.gradients(recorded, problem, *given, needs)
    exact = torch_kernels.gradients(doubled(problem), *map(doubles, given), (True, True))
    assert len(chunks) > 1
    assert [row for rows in chunks for row in range(rows.start, rows.stop)] == list(range(300))
    tolerance = 4 * torch.finfo(dtype).eps
    for grad, need, wanted in zip(got, (*needs, True), exact, strict=True):
        assert (grad is not None) == need
        if grad is not None:
            assert grad.dtype == torch.float32
            assert (grad - wanted).norm() <= tolerance * wanted.norm()


def test_float16_does_not_lose_small_weights():
    """A loss averaged over a million queries weighs 1e-6; shares of it are below all float16 numbers."""
    problem = block(dtype=torch.float16)
    sums, weights = sums_and_weights(problem)
    small = Weights._make(x * 1e-6 for x in weights)
    got = gpu.gradients(form_weights, problem, sums, small, (True, True))
    exact = torch_kernels.gradients(doubled(problem), doubles(sums), doubles(small), (True, True))
    for grad, wanted in zip(got, exact, strict=True):
        assert (grad - wanted).norm() <= 4 * torch.finfo(torch.float16).eps * wanted.norm()


def test_costs_of_targets(monkeypatch):
    """40 of 300 queries at a time; a target of -1 is elsewhere and costs nothing here."""
    monkeypatch.setattr(gpu, "WORKSPACE", 40 * 3 * 12 * 4)
    problem = block()
    problem.targets[7] = -1
    both, given = sums_and_weights(problem)
    for sums in (both, both._replace(columns_N=None)):
        costs_Q, weights = gpu.target_costs(problem, sums, given.losses_Q)
        wanted_Q, wanted = torch_kernels.positive_costs(problem, sums, given.losses_Q)
        for ours, theirs in zip((costs_Q, *weights), (wanted_Q, *wanted), strict=True):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs)
    assert costs_Q[7] == weights.rows_Q[7] == 0


def test_targets_that_are_no_passage_cost_nan():
    problem = block(4, 6, targets=torch.tensor([2, 6, -2, -1]))
    costs_Q, weights = gpu.target_costs(problem, Sums(torch.zeros(4), None), torch.ones(4))
    assert costs_Q.isnan().tolist() == weights.rows_Q.isnan().tolist() == [False, True, True, False]
