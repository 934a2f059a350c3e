"""Tables of embeddings whose gradient is the rows that a batch touched, and AdamW for these rows alone.

A dense gradient is as large as the vocabulary, and so is what AdamW reads and writes of it; a batch touches a
few thousand rows. What AdamW (Loshchilov and Hutter, 2019) would meanwhile have done to another row follows
from its moments: m and v shrink by beta1 and beta2 a step, so that k steps without a gradient move it by a
geometric sum, and decay it by a product. Rows make up for these steps when they are touched again, and at the
end of training. `torch.optim.SparseAdam` leaves them out: v does not shrink, rare rows take smaller steps,
and a static encoder learns less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from types import MethodType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import Embedding, EmbeddingBag, Parameter
from torch.nn.functional import embedding_bag
from torch.optim.adamw import adamw

from hybridfast.data.tokens import TokenizedCorpus
from hybridfast.encoder.loading import is_static
from hybridfast.training.config import TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["LazyAdamW", "SparseTables", "clip_gradients"]

PAYS = 4_096  # rows, from which a gradient of a chunk's tokens alone is worth sorting them, on a CPU
BLOCK = 512  # rows stepped at a time, so that what is made of them stays in the cache
# For a batch's token, from which a table is stepped lazily: a static encoder's step is little else.
ROWS_PER_TOKEN, STATIC_ROWS_PER_TOKEN = 10, 2


class SparseTables:
    """A block in which a model's tables of embeddings get sparse gradients; after it they are as before.

    With ``sparse_embeddings`` "auto", on CPUs: static encoders' tables, and encoders' word embeddings of
    at least 4,096 rows. Stepped lazily are those with many rows for every token of a batch, two of a static
    encoder and ten of others; the rest get a dense gradient once a step, where every chunk would have made
    one. "true": all are sparse and lazy, on any device; "false": none. Tables stay dense whose weights
    another module shares (such as a language model's head), that are frozen, renormed, or read with
    ``mode="max"``.

    Args:
        tokens: of which the batches will be.
    """

    def __init__(self, model: SentenceTransformer, config: TrainConfig, tokens: TokenizedCorpus) -> None:
        self.modules: list[Embedding | EmbeddingBag] = []
        self.weights: list[Parameter] = []  # theirs: those with sparse gradients
        self.lazy: list[Parameter] = []  # tables of which LazyAdamW steps the touched rows alone
        self._undo = ExitStack()
        chosen = config.sparse_embeddings
        if chosen == "false" or (chosen == "auto" and model.device.type != "cpu"):
            return  # a GPU fills gigabytes in a millisecond, and would wait for the number of rows
        texts = max(1, len(tokens.text_indptr) - 1)
        batch = config.texts_per_batch * len(tokens.token_ids) / texts
        static = is_static(model)
        least = batch * (STATIC_ROWS_PER_TOKEN if static else ROWS_PER_TOKEN)
        for weight, modules in _tables(model):
            if chosen == "true" or static or len(weight) >= PAYS:
                self.modules += modules
                self.weights.append(weight)
                if chosen == "true" or len(weight) >= least:
                    self.lazy.append(weight)

    def __enter__(self) -> SparseTables:
        for module in self.modules:
            self._undo.callback(setattr, module, "sparse", module.sparse)
            module.sparse = True
            if isinstance(module, EmbeddingBag):
                # A method, not a closure: a copy of the model has to read its own weights.
                module.forward = MethodType(_bag_forward, module)  # type: ignore[method-assign]
                self._undo.callback(delattr, module, "forward")
        for weight in self.weights:
            self._undo.callback(weight.register_post_accumulate_grad_hook(_compact).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()


def _tables(model: torch.nn.Module) -> Iterable[tuple[Parameter, list[Embedding | EmbeddingBag]]]:
    """Trained tables that only such modules read as can have sparse gradients, with these modules."""
    readers: dict[int, list[torch.nn.Module]] = {}
    weights: dict[int, Parameter] = {}
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            readers.setdefault(id(weight), []).append(module)
            weights[id(weight)] = weight
    for key, modules in readers.items():
        if weights[key].requires_grad and all(map(_can_be_sparse, modules)):
            yield weights[key], cast("list[Embedding | EmbeddingBag]", modules)


def _can_be_sparse(module: torch.nn.Module) -> bool:
    if not isinstance(module, (Embedding, EmbeddingBag)):
        return False
    if module.max_norm is not None or module.scale_grad_by_freq:
        return False
    if isinstance(module, EmbeddingBag):
        return module.mode != "max" and module.padding_idx is None and not module.include_last_offset
    return True


def _compact(weight: Tensor) -> None:
    """Add up rows that several chunks touched before they outgrow a dense gradient."""
    if weight.grad is not None and weight.grad.is_sparse and weight.grad._nnz() > len(weight):
        weight.grad = weight.grad.coalesce()


def _bag_forward(
    self: EmbeddingBag, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
) -> Tensor:
    if offsets is None or per_sample_weights is not None:
        return EmbeddingBag.forward(self, input, offsets, per_sample_weights)
    bags: Tensor = _Bag.apply(self.weight, input, offsets, self.mode)
    return bags


class _Bag(torch.autograd.Function):
    """`embedding_bag`, whose own sparse gradient has a row for every token, and whose dense one all rows."""

    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids_T: Tensor, offsets_B: Tensor, mode: str) -> Tensor:
        ctx.save_for_backward(ids_T, offsets_B)
        ctx.shape, ctx.mode = weight_VD.shape, mode
        return embedding_bag(ids_T, weight_VD, offsets_B, mode=mode)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        ids_T, offsets_B = ctx.saved_tensors
        lengths_B = torch.diff(offsets_B, append=offsets_B.new_tensor([len(ids_T)]))
        if ctx.mode == "mean":
            grad_BD = grad_BD / lengths_B.clamp(min=1)[:, None]
        # The transposed bag: a touched row's gradient is the sum over the texts that its tokens are in.
        text_T = torch.arange(len(lengths_B), device=ids_T.device).repeat_interleave(lengths_B)
        sorted_T, order_T = torch.sort(ids_T, stable=True)
        rows_U, counts_U = torch.unique_consecutive(sorted_T, return_counts=True)
        grad_UD = embedding_bag(text_T[order_T], grad_BD, counts_U.cumsum(0) - counts_U, mode="sum")
        grad = torch.sparse_coo_tensor(
            rows_U[None].long(), grad_UD, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return grad, None, None, None


class LazyAdamW(torch.optim.AdamW):
    """AdamW; of weights in groups with ``lazy``, a sparse gradient steps the rows that it has, and no others.

    A row first makes up for the steps since it was last touched, as above: exactly but for epsilon, for the
    rate's course, which is taken as that of the last touch for momentum and as linear for decay, and for the
    bias corrections of the first steps. Gradients meet it without that. Where every row is touched in every
    step, all of it is AdamW. Other groups take sparse gradients as dense ones.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            group.setdefault("lazy", False)
        # The fused kernel would skip steps of a loss scale that overflowed, and the rows would not know.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows = []
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or not weight.grad.is_sparse:
                    continue
                if group["lazy"]:
                    rows.append((group, weight, weight.grad.coalesce()))
                    weight.grad = None
                else:
                    weight.grad = weight.grad.to_dense()
        super().step()
        for group, weight, grad in rows:
            self._step_rows(group, weight, grad)
            weight.grad = grad
        return loss

    @torch.no_grad()
    def catch_up(self) -> None:
        """Let all rows make up for the steps in which they were not touched: a pass over the tables."""
        for group in self.param_groups:
            for weight in group["params"]:
                if "touched" in (state := self.state[weight]):
                    for first in range(0, len(weight), BLOCK):
                        rows = slice(first, first + BLOCK)
                        views = [table[rows] for table in (weight, state["exp_avg"], state["exp_avg_sq"])]
                        self._catch_up(group, state, rows, views, state["step"])
                    state["touched"].copy_(state["step"])

    def _step_rows(self, group: dict[str, Any], weight: Tensor, grad: Tensor) -> None:
        """torch's own AdamW of the touched rows, on copies of them."""
        state = self.state[weight]
        if "touched" not in state:
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
                state["exp_avg"] = torch.zeros_like(weight)
                state["exp_avg_sq"] = torch.zeros_like(weight)
            state["touched"] = state["step"].expand(len(weight)).clone()  # a row's last step
            state["rate"] = torch.full_like(state["touched"], float(group["lr"]))  # and its learning rate
        rows_U, before = grad.indices()[0], state["step"].clone()
        tables = [weight, state["exp_avg"], state["exp_avg_sq"]]
        for rows, values in zip(rows_U.split(BLOCK), grad.values().split(BLOCK), strict=True):
            copies = [table.index_select(0, rows) for table in tables]
            self._catch_up(group, state, rows, copies, before)
            state["step"].copy_(before)  # which every block counts up
            adamw(
                [copies[0]],
                [values],
                [copies[1]],
                [copies[2]],
                max_exp_avg_sqs=[],
                state_steps=[state["step"]],
                fused=group["fused"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )
            for table, copy in zip(tables, copies, strict=True):
                table.index_copy_(0, rows, copy)
        if not len(rows_U):
            return
        state["touched"].index_fill_(0, rows_U, float(state["step"]))
        state["rate"].index_fill_(0, rows_U, float(group["lr"]))

    def _catch_up(
        self, group: dict[str, Any], state: dict[str, Any], rows: Any, copies: list[Tensor], until: Tensor
    ) -> None:
        """What AdamW does to rows in the steps after their last one, up to `until`, without gradients."""
        beta1, beta2 = group["betas"]
        touched_U, rate_U = state["touched"][rows].double(), state["rate"][rows].double()
        missed_U = until.double() - touched_U
        first_U = touched_U.clamp(min=1)
        # The j-th of k missed steps moves by rate * ratio^j * m / sqrt(v), corrected for the bias of zeros.
        ratio = beta1 / beta2**0.5
        factor_U = rate_U * ((1 - beta2**first_U).sqrt() / (1 - beta1**first_U))
        factor_U *= ratio * (1 - ratio**missed_U) / (1 - ratio)
        decay_U = torch.exp(-group["weight_decay"] * missed_U * (rate_U + float(group["lr"])) / 2)
        weight_UD, mean_UD, square_UD = copies
        moves_UD = mean_UD / square_UD.sqrt().add_(group["eps"])
        weight_UD.mul_(decay_U[:, None].float()).addcmul_(moves_UD, factor_U[:, None].float(), value=-1)
        mean_UD.mul_((beta1**missed_U)[:, None].float())
        square_UD.mul_((beta2**missed_U)[:, None].float())


@torch.no_grad()
def clip_gradients(parameters: Iterable[Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a norm over all of them, rows of sparse ones added up first; the norm before.

    As `torch.nn.utils.clip_grad_norm_`, which takes no sparse ones.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        else:
            gradients.append(parameter.grad)
    norm = torch.nn.utils.get_total_norm(gradients)
    torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
    return norm
