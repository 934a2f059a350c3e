"""The public function and module: what they accept, refuse, save, and how they live inside torch."""

import inspect
import math

import pytest
import torch

import hybridfast
from hybridfast import InfoNCE, info_nce
from hybridfast.infonce import distributed, reference
from hybridfast.infonce.problem import Problem


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    q, p = (torch.randn(8, 5, generator=generator).requires_grad_() for _ in range(2))
    return q, p


Q, P, IDS = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4, dtype=torch.int64)
BAD = [
    ("queries must be (Q, D), got (2, 4, 3)", {"queries": torch.zeros(2, 4, 3)}),
    ("passages must be (N, D), got (3,)", {"passages": torch.zeros(3)}),
    ("queries must not be empty, got (0, 3)", {"queries": torch.zeros(0, 3)}),
    ("passages must not be empty, got (0, 3)", {"passages": torch.zeros(0, 3)}),
    ("passages must be (N, 3) like queries, got (5, 4)", {"passages": torch.zeros(5, 4)}),
    ("passages must be torch.float32 like queries, got torch.float64", {"passages": P.double()}),
    ("queries must be one of torch.float32", {"queries": Q.long()}),
    ("passages must be on cpu like queries, got meta", {"passages": P.to("meta")}),
    ("targets must be (4,), got (3,)", {"targets": IDS[:3]}),
    ("targets must be torch.int64, got torch.int32", {"targets": IDS.int()}),
    ("targets must be rows of the 5 passages, got 7", {"targets": IDS + 7}),
    ("targets must be rows of the 5 passages, got -1", {"targets": IDS - 1}),
    ("targets must be given for more queries than passages, got 4 and 2", {"passages": P[:2]}),
    ("temperature must be positive and finite, got 0", {"temperature": 0}),
    ("temperature must be positive and finite, got nan", {"temperature": math.nan}),
    ("temperature must be positive and finite, got -1.0", {"temperature": torch.tensor(-1.0)}),
    ("temperature must be a floating scalar, got shape (2,)", {"temperature": torch.ones(2)}),
    ("passage_groups must be given", {"query_groups": IDS}),
    ("query_groups must be (4,), got (5,)", {"query_groups": IDS.new_zeros(5), "passage_groups": IDS}),
    ("positives must be one of 'target', 'groups', got 'all'", {"positives": "all"}),
    ("positives='groups' needs query_groups", {"positives": "groups"}),
    (
        "query_groups must occur in passage_groups: query 0 of group 0 has no positive",
        {"positives": "groups", "query_groups": IDS, "passage_groups": IDS.new_ones(5)},
    ),
    ("reduction must be one of 'mean', 'sum', 'none', got 'max'", {"reduction": "max"}),
    ("backend must be one of", {"backend": "tpu"}),
    (
        "backend='triton' does not cover float64",
        {"backend": "triton", "queries": Q.double(), "passages": P.double()},
    ),
    ("backend='triton' does not cover float64", {"backend": "triton", "compute_dtype": torch.float64}),
    ("backend='cuda' ", {"backend": "cuda"}),
    ("margin must be finite, got inf", {"margin": math.inf}),
    ("grad_tolerance must be in [0, 1), got 1.0", {"grad_tolerance": 1.0}),
    ("compute_dtype must be one of torch.float32", {"compute_dtype": torch.int8}),
    ("return_stats needs the gradients", {"return_stats": True, "reduction": "none"}),
    ("in_batch=False leaves the passage-to-query direction", {"in_batch": False, "bidirectional": True}),
]


@pytest.mark.parametrize(("message", "change"), BAD, ids=[message for message, _ in BAD])
def test_bad_input_is_named(message, change):
    arguments = {"queries": Q, "passages": P, **change}
    with pytest.raises(ValueError) as error:
        info_nce(**arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("function", [info_nce, distributed.info_nce], ids=["one process", "ranks"])
def test_signatures_and_the_problem_have_the_same_options(function):
    """Both pass options on by place: in the problem's order, and with its defaults."""
    of_call = {"deterministic", "return_stats", "exchange", "process_group"}
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in of_call and parameter.default is not inspect.Parameter.empty
    }
    of_one_process = {"reduction", "backend"} if function is distributed.info_nce else set()
    fields = [name for name in Problem._fields[2:-1] if name not in of_one_process]
    assert list(options) == fields
    assert options == {name: Problem._field_defaults[name] for name in fields}


def test_compiled_is_eager(batch):
    def step(q, p):
        return info_nce(q * 2, p, 0.1) * 3

    losses, grads = [], []
    for function in (step, torch.compile(step, fullgraph=True)):
        loss = function(*batch)
        losses.append(loss.detach())
        grads.append(torch.autograd.grad(loss, batch))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(grads[0], grads[1])


def test_autocast_rounds_the_factors(batch):
    q, p = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = info_nce(q, p)
    assert under.dtype == torch.float32
    assert torch.equal(under, info_nce(q, p, compute_dtype=torch.bfloat16))
    assert not torch.equal(under, info_nce(q, p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(batch, dtype):
    q, p = (x.detach().to(dtype).requires_grad_() for x in batch)
    loss = info_nce(q, p, 0.2)
    loss.backward()
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert q.grad.dtype == dtype
    exact_q = q.detach().double().requires_grad_()
    exact = reference.info_nce(exact_q, p.detach().double(), 0.2)
    exact.backward()
    tolerance = 8 * torch.finfo(dtype).eps
    assert abs(loss - exact) <= tolerance * exact / 0.2
    assert (q.grad - exact_q.grad).norm() <= tolerance * exact_q.grad.norm() / 0.2


def test_a_loss_scale_saves_half_precision_gradients(batch):
    """As torch.amp.GradScaler does it: in float16, gradients of 1e-7 are hardly anything before that."""
    q, p = ((1e4 * x.detach()).half().requires_grad_() for x in batch)  # the gradient falls as the norm grows
    (info_nce(q, p, 10.0) * 2**16).backward()
    exact_q = q.detach().double().requires_grad_()
    (reference.info_nce(exact_q, p.detach().double(), 10.0) * 2**16).backward()
    assert (q.grad - exact_q.grad).norm() <= 0.01 * exact_q.grad.norm()


def test_only_what_is_asked_for_gets_a_gradient(batch):
    q, p = batch
    both = torch.autograd.grad(info_nce(q, p), (q, p))
    assert torch.equal(torch.autograd.grad(info_nce(q, p.detach()), q)[0], both[0])
    assert torch.equal(torch.autograd.grad(info_nce(q.detach(), p), p)[0], both[1])
    assert not info_nce(q.detach(), p.detach()).requires_grad


def test_views_and_inference_mode(batch):
    q, p = (x.detach() for x in batch)
    expected = info_nce(q, p)
    assert torch.equal(info_nce(q.T.contiguous().T, torch.stack([p, p], dim=1)[:, 0]), expected)
    expanded = info_nce(q[:1].expand(8, -1), p)
    assert torch.equal(expanded, info_nce(q[:1].repeat(8, 1), p))
    with torch.inference_mode():
        assert torch.equal(info_nce(q, p), expected)


def test_repeats_bitwise_and_takes_a_second_backward(batch):
    q, p = batch
    loss = info_nce(q, p)
    first = torch.autograd.grad(loss, (q, p), retain_graph=True)
    again = torch.autograd.grad(loss * 2, (q, p))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(2 * one, two)
    assert torch.equal(info_nce(q, p), loss)


def test_saves_the_gradients_and_nothing_else():
    q, p = torch.randn(300, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.nbytes) or x, lambda x: x):
        info_nce(q, p)
    assert sum(saved) <= q.nbytes + p.nbytes + 8


def test_backward_reuses_the_memory_of_the_saved_gradients(batch):
    q, p = batch
    problem = Problem(q, p, torch.tensor(0.05), needs=(True, True, False))
    loss, _, saved, *_ = torch.ops.hybridfast.info_nce(*problem)
    (2 * loss).backward()
    assert p.grad.data_ptr() == saved.data_ptr()


def test_module_learns_its_temperature_within_its_range(batch):
    module = InfoNCE(0.05, learn_temperature=True, temperature_range=(0.04, 1.0))
    module(*batch).backward()
    temperature = torch.tensor(0.05, requires_grad=True)
    info_nce(*batch, temperature).backward()
    torch.testing.assert_close(module.log_temperature.grad, temperature.grad * 0.05)
    with torch.no_grad():
        module.log_temperature.fill_(-100.0)
    assert module.temperature.item() == pytest.approx(0.04)


def test_a_temperature_beyond_its_range_comes_back(batch):
    """A step too far is taken back, so that the next finds a gradient."""
    module = InfoNCE(0.05, learn_temperature=True, temperature_range=(0.04, 1.0))
    with torch.no_grad():
        module.log_temperature.fill_(-100.0)
    module(*batch).backward()
    assert module.log_temperature.item() == pytest.approx(math.log(0.04))
    assert module.log_temperature.grad.abs() > 0


def test_module_holds_its_options(batch):
    module = InfoNCE(0.1, margin=0.2, bidirectional=True)
    assert torch.equal(module(*batch), info_nce(*batch, 0.1, margin=0.2, bidirectional=True))
    assert "margin=0.2" in repr(module)
    assert not list(module.parameters())
    with pytest.raises(TypeError, match="takes no option 'marign'"):
        InfoNCE(marign=0.2)
    with pytest.raises(ValueError, match="temperature must be positive"):
        InfoNCE(0.0)


def test_build_info():
    info = hybridfast.build_info()
    assert info["simd"] in info["simd_supported"]
