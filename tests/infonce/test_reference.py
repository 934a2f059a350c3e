"""The reference against public losses, and by hand where no public loss has the option."""

import pytest
import torch
import torch.nn.functional as F

from hybridfast.infonce import reference


def rows(count, dim=6, seed=0):
    return torch.randn(count, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("queries", "passages"), [(5, 5), (4, 9)])
def test_one_positive_is_cross_entropy(queries, passages):
    q, p, targets = rows(queries), rows(passages, seed=1), torch.arange(queries).flip(0)
    logits = F.normalize(q) @ F.normalize(p).T / 0.1
    got = reference.info_nce(q, p, 0.1, targets=targets, reduction="none")
    torch.testing.assert_close(got, F.cross_entropy(logits, targets, reduction="none"))


@pytest.mark.filterwarnings("ignore:Importing from:DeprecationWarning")  # the path that versions 4 to 6 share
def test_sentence_transformers_agrees():
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    q, p = rows(6), rows(9, seed=1)
    peer = MultipleNegativesRankingLoss(model=None, scale=20.0)
    # Anchors, positives and one column of hard negatives: candidates are the positives, then the negatives.
    expected = peer.compute_loss_from_embeddings([q[:3], p[:3], p[3:6]], None)
    torch.testing.assert_close(reference.info_nce(q[:3], p[:6], 0.05), expected)


def test_bidirectional_is_the_mean_of_two_cross_entropies():
    q, p = rows(5), rows(5, seed=1)
    logits, targets = F.normalize(q) @ F.normalize(p).T / 0.1, torch.arange(5)
    expected = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    torch.testing.assert_close(reference.info_nce(q, p, 0.1, bidirectional=True), expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_pair_of_masks_by_hand(bidirectional):
    """Loops over pairs, in words the docstring uses."""
    q, p, margin, temperature = rows(4), rows(6, seed=1), 0.2, 0.3
    query_groups, passage_groups = torch.tensor([0, 1, 0, 2]), torch.tensor([0, 1, 2, 1, 3, 0])
    s = F.normalize(q) @ F.normalize(p).T / temperature
    expected = []
    for i in range(4):
        costs = []
        for g in range(6):
            if query_groups[i] != passage_groups[g]:
                continue
            wanted = torch.exp(s[i, g] - margin / temperature)
            row = sum(torch.exp(s[i, j]) for j in range(6) if query_groups[i] != passage_groups[j])
            column = sum(torch.exp(s[k, g]) for k in range(4) if query_groups[k] != passage_groups[g])
            costs.append(-torch.log(wanted / (wanted + row)))
            if bidirectional:
                costs[-1] = (costs[-1] - torch.log(wanted / (wanted + column))) / 2
        expected.append(sum(costs) / len(costs))
    got = reference.info_nce(
        q, p, temperature, query_groups=query_groups, passage_groups=passage_groups, positives="groups",
        bidirectional=bidirectional, margin=margin, reduction="none",
    )  # fmt: skip
    torch.testing.assert_close(got, torch.stack(expected))


def test_eq1_of_the_paper_leaves_other_positives_out():
    q, p = rows(3), rows(5, seed=1)
    s = torch.exp(F.normalize(q) @ F.normalize(p).T / 0.5)
    expected = -torch.log(s.diagonal() / (s.diagonal() + s[:, 3:].sum(dim=1)))
    torch.testing.assert_close(reference.info_nce(q, p, 0.5, in_batch=False, reduction="none"), expected)


def test_without_negatives_the_loss_and_gradient_are_zero():
    q = rows(3).requires_grad_()
    loss = reference.info_nce(q, rows(3, seed=1), 0.5, in_batch=False)
    loss.backward()
    assert loss.item() == 0
    assert q.grad.abs().max() == 0


def test_zero_row_passes_no_gradient():
    q, p = rows(3), rows(3, seed=1)
    q[1] = 0
    q.requires_grad_()
    reference.info_nce(q, p).backward()
    assert q.grad[1].abs().max() == 0
    assert q.grad[0].abs().max() > 0
