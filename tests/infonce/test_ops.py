"""The registered ops and both backends against the float64 reference."""

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hybridfast import _core, info_nce
from hybridfast.infonce import backends, ops, reference
from hybridfast.infonce.problem import Problem

TRITON = ("triton",) if backends.TRITON and backends.TRITON_INTERPRETED else ()
BACKENDS = ("cpu", "torch", *TRITON)


def problem(queries, passages, dim, seed=0):
    """Queries that resemble their targets, as they do in training; targets repeat and miss rows."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.randn(passages, dim, generator=generator)
    targets = torch.randint(passages, (queries,), generator=generator)
    q = p[targets] + torch.randn(queries, dim, generator=generator)
    return q, p, targets


def gradients(loss_function, q, p, temperature, weights, **options):
    """Losses and the three gradients for given upstream gradients of the losses."""
    q, p = q.clone().requires_grad_(), p.clone().requires_grad_()
    t = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    losses = loss_function(q, p, t, reduction="none", **options)
    losses.backward(weights.to(losses.dtype))
    return [losses.detach(), q.grad, p.grad, t.grad]


def eager(q, p, temperature, targets, reduction):
    logits = F.normalize(q) @ F.normalize(p).T / temperature.to(q.dtype)
    return F.cross_entropy(logits, targets, reduction=reduction)


OPTIONS = [
    dict(
        zip(("positives", "bidirectional", "in_batch", "margin", "normalize", "groups"), choice, strict=True)
    )
    for choice in itertools.product(
        ("target", "groups"), (False, True), (True, False), (0.0, 0.2), (True, False), (False, True)
    )
    if (choice[2] or not choice[1]) and (choice[5] or choice[0] == "target")
]


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [*itertools.product(["auto", "torch"], [torch.float32, torch.float64])]
    + [(backend, torch.float32) for backend in TRITON],
    ids=str,
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_matches_the_reference(options, backend, dtype):
    # 37 queries are one full panel and a part for every instruction set; 101 passages two chunks and a part.
    q, p, targets = problem(37, 101, 19)
    options = {"targets": targets, **options}
    if options.pop("groups"):
        options["query_groups"] = torch.arange(37) % 11
        options["passage_groups"] = torch.arange(101) % 23
    weights = torch.randn(37, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = gradients(reference.info_nce, q.double(), p.double(), 0.3, weights, **options)
    got = gradients(info_nce, q.to(dtype), p.to(dtype), 0.3, weights, backend=backend, **options)
    tolerance = 1e-11 if dtype == torch.float64 else 5e-6
    if backend == "triton":  # whose interpreter rounds a fused multiply-add twice
        tolerance = 1e-5
    for value, wanted in zip(got, expected, strict=True):
        assert (value - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tolerance", [0.0, 1e-4])
def test_half_precision_inputs_are_read_exactly(dtype, tolerance):
    """In float32 products only the gradients that come back are rounded."""
    q, p, targets = (x.to(dtype) if x.is_floating_point() else x for x in problem(600, 500, 37))
    targets = targets[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    exact = info_nce_gradients(reference.info_nce, q.double(), p.double(), 0.01, targets)
    loss, grads, stats = info_nce_gradients(
        info_nce, q, p, 0.01, targets,
        compute_dtype=torch.float32, grad_tolerance=tolerance, return_stats=True, backend="cpu",
    )  # fmt: skip
    assert loss == pytest.approx(exact[0], rel=1e-6)
    assert (stats.kept < 1) == (tolerance > 0)
    for value, wanted in zip(grads, exact[1], strict=True):
        assert value.dtype == dtype
        assert (value - wanted).norm() <= (torch.finfo(dtype).eps + 2 * tolerance) * wanted.norm()


@settings(max_examples=60, deadline=None)
@example(queries=1, passages=5, dim=1, temperature=3.0, seed=0, special="duplicates")
@example(queries=4, passages=11, dim=4, temperature=0.00390625, seed=0, special="huge")
@example(queries=40, passages=110, dim=4, temperature=5.0, seed=0, special="tiny")
@given(
    queries=st.integers(1, 70),
    passages=st.integers(1, 130),
    dim=st.one_of(st.integers(1, 70), st.sampled_from([123, 128, 384, 511, 1025])),
    temperature=st.floats(1e-3, 10),
    seed=st.integers(0, 2**16),
    special=st.sampled_from(["none", "duplicates", "zeros", "huge", "tiny"]),
)
def test_error_is_not_above_eager(queries, passages, dim, temperature, seed, special):
    """Odd shapes on both sides of every vector width, temperatures whose logits overflow exp."""
    q, p, targets = problem(queries, passages, dim, seed)
    if special == "duplicates":
        p[:] = p[0].clone()
    if special == "zeros":
        q[0], p[-1] = 0, 0
    if special == "huge":
        q, p = q * 1e15, p * 1e-15
    if special == "tiny":
        q, p = q * 1e-18, p * 1e15
    weights = torch.full((queries,), 1 / queries, dtype=torch.float64)
    exact = gradients(reference.info_nce, q.double(), p.double(), temperature, weights, targets=targets)
    ours = gradients(info_nce, q, p, temperature, weights, targets=targets, backend="cpu")
    theirs = gradients(eager, q, p, temperature, weights, targets=targets)
    # Gradients cancel; what rounding may leave is relative to what was summed: weights / temperature / |row|.
    unit = torch.finfo(torch.float32).eps / temperature
    shortest_q, shortest_p = (x.norm(dim=1)[x.norm(dim=1) > 0].min() if x.any() else 1.0 for x in (q, p))
    floors = (
        8 * max(unit, torch.finfo(torch.float32).eps) * queries**0.5,  # the sum of exponentials rounds, too
        16 * unit / shortest_q,
        16 * unit / shortest_p,
        32 * unit / temperature,
    )
    if special == "zeros":  # eager's gradient of a zero row is 1e12 times too large
        theirs[1][0], theirs[2][-1] = exact[1][0], exact[2][-1]
    for got, peer, wanted, floor in zip(ours, theirs, exact, floors, strict=True):
        assert (got - wanted).norm() <= 1.5 * (peer - wanted).norm() + floor


def native(q, p, targets, threads, groups=None, bfloat16=False, tolerance=0.0):
    losses, query_grads, passage_grads = torch.empty(len(q)), torch.empty_like(q), torch.empty_like(p)
    weights = np.full(len(q), 1 / len(q), dtype=np.float32)
    query_groups, passage_groups = groups or (None, None)
    total, temperature_grad, *_stats = _core.info_nce(
        q.numpy(), p.numpy(), 0.05, targets.numpy(), query_groups, passage_groups,
        0.0, True, True, False, False, bfloat16, losses.numpy(), weights,
        query_grads.numpy(), passage_grads.numpy(), tolerance, threads,
    )  # fmt: skip
    return losses, query_grads, passage_grads, torch.tensor([total, temperature_grad])


class Losses(torch.utils.data.Dataset):
    """Items that are losses and gradients, for workers to compute with two threads."""

    def __init__(self):
        self.problems = [problem(300, 400, 20, seed) for seed in range(4)]

    def __len__(self):
        return len(self.problems)

    def __getitem__(self, item):
        return native(*self.problems[item], threads=2)


def test_loss_in_forked_workers_of_a_data_loader():
    """They inherit the threads by name only: torch's own loops hang there, unless kept to one thread."""
    losses = Losses()
    here = [losses[item] for item in range(4)]  # which starts the threads in the parent
    loader = torch.utils.data.DataLoader(losses, None, num_workers=2, timeout=30)
    for expected, got in zip(here, loader, strict=True):
        for value, wanted in zip(got, expected, strict=True):
            assert torch.equal(value, wanted)


def test_bits_do_not_depend_on_the_number_of_threads():
    q, p, targets = problem(700, 900, 70)  # two query blocks, nineteen chunks
    groups = np.arange(700, dtype=np.int32) % 50, np.arange(900, dtype=np.int32) % 70
    for bfloat16, tolerance in itertools.product((False, True), (0.0, 0.1)):
        first = native(q, p, targets, 1, groups, bfloat16, tolerance)
        for threads in (1, 2, 3, 8):
            again = native(q, p, targets, threads, groups, bfloat16, tolerance)
            for value, wanted in zip(again, first, strict=True):
                assert torch.equal(value, wanted)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_bfloat16_products_round_the_factors_only(options):
    """Odd sizes, so that pairs of dimensions, queries and passages all have an odd one out."""
    q, p, targets = problem(37, 101, 19)
    options = {"targets": targets, **options}
    if options.pop("groups"):
        options["query_groups"] = torch.arange(37) % 11
        options["passage_groups"] = torch.arange(101) % 23
    weights = torch.ones(37, dtype=torch.float64)
    largest = 1 if options["normalize"] else float(q.norm(dim=1).max() * p.norm(dim=1).max())
    temperature = 0.3 * largest
    exact = gradients(reference.info_nce, q.double(), p.double(), temperature, weights, **options)
    got = gradients(info_nce, q, p, temperature, weights, compute_dtype=torch.bfloat16, **options)
    logit_error = 2**-8 * largest / temperature  # two roundings of relative 2^-9
    assert (got[0] - exact[0]).abs().max() <= 2 * logit_error
    for value, wanted in zip(got[1:3], exact[1:3], strict=True):
        assert (value - wanted).norm() <= 4 * logit_error * wanted.norm()


@pytest.mark.parametrize(
    "options",
    [{}, {"bidirectional": True}, {"grad_tolerance": 1e-3}, {"compute_dtype": torch.bfloat16}],
    ids=str,
)
@pytest.mark.parametrize("largest", ["above the sample", "below the start"])
def test_largest_logits_that_the_sample_does_not_show(largest, options):
    """The native kernels shift logits by the largest of every 70th passage; some queries' are far from it.

    Either their nearest negatives are not among those, or those are masked and all others far below 0.
    """
    q, p, targets = problem(300, 700, 32)
    odd = torch.tensor([3, 40, 41, 250, 299])
    groups = {}
    if largest == "above the sample":
        p[2 * odd + 1] = q[odd]
    else:
        p[:, 0] += 20
        q[odd] = torch.zeros(32).index_fill_(0, torch.tensor([0]), -1.0) + 0.1 * q[odd]
        groups = {"query_groups": torch.arange(300), "passage_groups": torch.arange(700) + 1000}
        groups["query_groups"][odd] = 5
        groups["passage_groups"][::70] = 5
    q, p = (F.normalize(x).bfloat16().float() for x in (q, p))  # products of bfloat16 are exact
    options = {"normalize": False, **groups, **options}
    exact_options = {k: v for k, v in options.items() if k not in ("grad_tolerance", "compute_dtype")}
    weights = torch.ones(300, dtype=torch.float64)
    exact = gradients(
        reference.info_nce, q.double(), p.double(), 2e-3, weights, targets=targets, **exact_options
    )
    got = gradients(info_nce, q, p, 2e-3, weights, targets=targets, **options)
    assert got[0][odd].double().numpy() == pytest.approx(exact[0][odd].numpy(), rel=1e-4, abs=1e-4)
    tolerance = 2**-7 if "compute_dtype" in options else 2 * options.get("grad_tolerance", 0) + 1e-3
    for value, wanted in zip(got[1:3], exact[1:3], strict=True):
        assert (value - wanted).norm() <= tolerance * wanted.norm()
    assert (got[1] - exact[1])[odd].norm() <= tolerance * exact[1][odd].norm()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_products_beyond_float32_do_not_pass_for_a_loss(tolerance, bidirectional):
    q, p, targets = problem(40, 90, 8)
    p[:45] *= 1e20
    options = {"normalize": False, "targets": targets, "grad_tolerance": tolerance}
    assert info_nce(q * 1e20, p, 1.0, bidirectional=bidirectional, **options).isnan()


@pytest.mark.parametrize("dim", [19, 200, 384])
@pytest.mark.parametrize("tolerance", [1e-4, 1e-2])
def test_filter_keeps_to_its_tolerance(dim, tolerance):
    """600 queries are two blocks; the dimensions end in no, one and several spans of vectors."""
    q, p, targets = problem(600, 500, dim)
    q = q[
        torch.randperm(600, generator=torch.Generator().manual_seed(1))
    ]  # or the targets leave nothing to sum
    groups = {"query_groups": torch.arange(600) % 97, "passage_groups": torch.arange(500) % 89}
    temperature = 0.1 * dim**-0.5  # logits of unrelated rows then have a standard deviation of 10
    exact = info_nce_gradients(reference.info_nce, q.double(), p.double(), temperature, targets, **groups)
    loss, grads, stats = info_nce_gradients(
        info_nce, q, p, temperature, targets, **groups, grad_tolerance=tolerance, return_stats=True
    )
    assert loss == pytest.approx(exact[0], rel=1e-6)
    assert 0 < stats.dropped <= tolerance
    assert stats.kept < 0.2
    for value, wanted in zip(grads, exact[1], strict=True):
        assert (value - wanted).norm() <= (2 * tolerance + 1e-5) * wanted.norm()


@pytest.mark.parametrize("dim", [19, 200, 384, 811])
def test_filter_of_bfloat16_products(dim):
    """Beside the dense gradients, whose weights are rounded; 811 dimensions are two spans and more."""
    q, p, targets = problem(600, 500, dim)
    q = q[torch.randperm(600, generator=torch.Generator().manual_seed(1))]
    options = {"compute_dtype": torch.bfloat16, "return_stats": True}
    temperature = 0.1 * dim**-0.5
    dense, wanted, _ = info_nce_gradients(info_nce, q, p, temperature, targets, **options)
    loss, grads, stats = info_nce_gradients(
        info_nce, q, p, temperature, targets, grad_tolerance=1e-4, **options
    )
    assert loss == dense
    assert stats.kept < 0.2
    for value, whole in zip(grads, wanted, strict=True):
        assert (value - whole).norm() <= 2**-7 * whole.norm()


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_filter_that_does_not_pay_leaves_the_dense_bits(compute_dtype):
    """Two blocks of float32, an odd number of passages, and logits too much alike to leave any out."""
    q, p, targets = problem(600, 501, 61)
    options = {"compute_dtype": compute_dtype, "return_stats": True}
    dense, wanted, _ = info_nce_gradients(info_nce, q, p, 0.5, targets, **options)
    loss, grads, stats = info_nce_gradients(info_nce, q, p, 0.5, targets, grad_tolerance=1e-3, **options)
    assert stats == (1.0, 0.0)
    assert loss == dense
    assert all(torch.equal(value, whole) for value, whole in zip(grads, wanted, strict=True))


@pytest.mark.parametrize("mass", ["every eighth passage", "all others"])
def test_filter_where_its_sample_misleads(mass):
    """A query's negatives are alike in their share but for those that the sample of every eighth sees."""
    q, p, targets = problem(300, 500, 64)
    q = q[torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    weak = torch.arange(500) % 8 == 0
    p[~weak if mass == "every eighth passage" else weak] *= 0.5  # logits that are half as far from 0
    options = {"normalize": False, "grad_tolerance": 1e-3, "return_stats": True}
    exact = info_nce_gradients(reference.info_nce, q.double(), p.double(), 2.0, targets, normalize=False)
    loss, grads, stats = info_nce_gradients(info_nce, q, p, 2.0, targets, **options)
    assert loss == pytest.approx(exact[0], rel=1e-6)
    assert 0 < stats.dropped <= 1e-3
    for value, wanted in zip(grads, exact[1], strict=True):
        assert (value - wanted).norm() <= (2e-3 + 1e-5) * wanted.norm()


def test_filter_steps_back_from_a_flat_softmax():
    q, p, targets = problem(100, 300, 64)
    whole = info_nce_gradients(info_nce, q, p, 5.0, targets)[1]
    _, grads, stats = info_nce_gradients(info_nce, q, p, 5.0, targets, grad_tolerance=1e-3, return_stats=True)
    assert stats == (1.0, 0.0)
    for value, wanted in zip(grads, whole, strict=True):
        assert torch.equal(value, wanted)


def info_nce_gradients(loss_function, q, p, temperature, targets, **options):
    q, p = q.clone().requires_grad_(), p.clone().requires_grad_()
    out = loss_function(q, p, temperature, targets=targets, **options)
    loss, stats = out if isinstance(out, tuple) else (out, None)
    return loss.item(), torch.autograd.grad(loss, (q, p)), stats


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"margin": 0.1, "in_batch": False}], ids=str
)
def test_more_passages_than_the_workspace_holds(options):
    """The softmax of 32 queries has room for 458,640 passages: 460,000 take two slabs."""
    q, p, targets = problem(33, 460_000, 2)
    weights = torch.rand(33, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = gradients(reference.info_nce, q.double(), p.double(), 0.3, weights, targets=targets, **options)
    got = gradients(info_nce, q, p, 0.3, weights, targets=targets, backend="cpu", **options)
    for value, wanted in zip(got, expected, strict=True):
        assert (value - wanted).norm() <= 2e-5 * wanted.norm()


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="reads the peak of resident memory from /proc"
)
def test_a_step_stays_within_its_workspace():
    """4,096 x 65,536 logits are 1 GB. A step may add its gradients and 64 MB. Dim 64 is for speed."""
    code = """
import itertools, os
from pathlib import Path
import torch
from hybridfast import info_nce
def kilobytes(field):
    return int(Path("/proc/self/status").read_text().split(field)[1].split()[0])
def step(queries, passages, dtype, **options):
    q, p = (torch.randn(n, 64, dtype=getattr(torch, dtype), requires_grad=True) for n in (queries, passages))
    before = kilobytes("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")
    info_nce(q, p, **options).backward()
    return (kilobytes("VmHWM:") - before) / 1024
different = ({}, {"bidirectional": True}, {"grad_tolerance": 0.1})
for dtype, options in itertools.product(("float32", "bfloat16"), different):
    if os.fork() == 0:  # a child has no memory of earlier steps that it could use again
        step(64, 64, dtype, **options)  # brings in what is loaded late
        print(dtype, step(4096, 65536, dtype, **options), options, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    in_float32 = 4 * 64 * (4096 + 65536) / 2**20
    for line in lines:
        dtype, megabytes, _ = line.split(maxsplit=2)
        gradients = in_float32 * (1 if dtype == "float32" else 1.5)  # formed in float32, then rounded
        assert float(megabytes) <= gradients + 64, line


def test_many_positive_pairs_go_to_torch(monkeypatch):
    q, p, _ = problem(4, 6, 3)
    ids = {"query_groups": torch.zeros(4, dtype=torch.int64), "passage_groups": torch.arange(6) % 2}
    native = info_nce(q, p, positives="groups", **ids)
    monkeypatch.setattr(ops, "MOST_PAIRS", 11)
    torch.testing.assert_close(info_nce(q, p, positives="groups", **ids), native)
    with pytest.raises(ValueError, match="backend='cpu' does not cover more than 11 positive pairs"):
        info_nce(q, p, positives="groups", backend="cpu", **ids)


@pytest.mark.parametrize("compute_dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_lies_around_the_rows_is_not_read(bidirectional, compute_dtype):
    """The rows stand amid NaN; sizes on no vector's or chunk's edge."""
    rows = {"q": (37, 3), "p": (101, 5)}  # how many, and after how many others
    surrounded, alone = [], []
    for count, before in rows.values():
        storage = torch.full((before + count + 40, 19), torch.nan)
        storage[before : before + count] = torch.randn(
            count, 19, generator=torch.Generator().manual_seed(count)
        )
        view = storage[before : before + count]
        surrounded.append(view.detach().requires_grad_())
        alone.append(view.clone().requires_grad_())
    options = {"bidirectional": bidirectional, "compute_dtype": compute_dtype, "backend": "cpu"}
    losses = [info_nce(*inputs, 0.1, **options) for inputs in (surrounded, alone)]
    assert torch.equal(losses[0], losses[1])
    grads = [torch.autograd.grad(loss, x) for loss, x in zip(losses, (surrounded, alone), strict=True)]
    for got, wanted in zip(*grads, strict=True):
        assert torch.equal(got, wanted)


def test_python_threads_may_call_at_once():
    inputs = [problem(200, 300, 40, seed) for seed in range(6)]
    expected = [native(*arguments, 1) for arguments in inputs]
    with ThreadPoolExecutor(6) as pool:
        for got, wanted in zip(pool.map(lambda x: native(*x, 3), inputs), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_a_forked_child_can_call():
    """The child has none of the parent's worker threads. A process of its own: pytest has threads too."""
    code = """
import os, torch
from hybridfast import info_nce
torch.set_num_threads(4)
q, p = torch.randn(100, 8), torch.randn(400, 8)
parent = info_nce(q, p)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(info_nce(q, p), parent) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=60).returncode == 0


def test_binding_refuses_what_does_not_fit():
    q, p, targets = problem(4, 5, 3)
    with pytest.raises(ValueError, match="targets must be rows of the 5 passages, got 9"):
        native(q, p, targets + 9 - targets, 1)
    with pytest.raises(ValueError, match="targets has the wrong shape"):
        native(q, p, targets[:3], 1)
    with pytest.raises(TypeError):
        native(q.double(), p, targets, 1)


def op_arguments(needs, **options):
    q, p, targets = problem(9, 11, 6)
    temperature = torch.tensor(0.1, dtype=torch.float64)
    inputs = [x.requires_grad_(need) for x, need in zip((q, p, temperature), needs, strict=True)]
    return Problem(*inputs, targets, needs=needs, **options)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("needs", [(True, True, True), (False, True, False), (False, False, False)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(needs, reduction, backend):
    arguments = op_arguments(needs, reduction=reduction, backend=backend)
    torch.library.opcheck(torch.ops.hybridfast.info_nce.default, tuple(arguments))


def test_opcheck_of_the_recomputed_gradients():
    arguments = *op_arguments((False,) * 3)._replace(needs=(True, True, False)), torch.rand(9)
    torch.library.opcheck(torch.ops.hybridfast.info_nce_gradients.default, arguments)


@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True}, {"reduction": "none", "margin": 0.1}], ids=str
)
def test_gradcheck(options):
    q, p, _ = problem(5, 7, 4)
    inputs = [x.double().requires_grad_() for x in (q, p, torch.tensor(0.3))]
    assert torch.autograd.gradcheck(lambda *x: info_nce(*x, **options), inputs)


def test_second_derivative_is_refused():
    q, p, _ = problem(5, 7, 4)
    q.requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(info_nce(q, p), q, create_graph=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_gives_nan(value, normalize, backend):
    q, p, targets = problem(37, 101, 19)
    bad = q.clone()
    bad[3, 5] = value
    losses = info_nce(bad, p, targets=targets, normalize=normalize, backend=backend, reduction="none")
    assert losses.isnan().nonzero().flatten().tolist() == [3]
    p[70, 2] = value
    p.requires_grad_()
    losses = info_nce(q, p, targets=targets, normalize=normalize, backend=backend, reduction="none")
    assert losses.isnan().all()
    losses.sum().backward()
