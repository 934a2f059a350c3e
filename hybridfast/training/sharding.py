"""A model over the memories of several ranks: each holds a part of every weight, gradient and moment (FSDP2).

A unit, a layer or the rest, has all of its weights on a rank only while a chunk goes through it (Zhao et al.,
2023; ZeRO stage 3: Rajbhandari et al., 2020). Gathering them is work that all ranks do together, so that all
have to send equally many chunks through the model, in the same order, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module, ModuleList

from hybridfast.encoder.loading import is_static
from hybridfast.training.config import TrainConfig

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from hybridfast.encoder.embedding import Side
    from hybridfast.training.ranks import Ranks

__all__ = ["Rounds", "bytes_held", "check", "fill", "local", "parts_of", "shard", "shards", "whole"]


def shards(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether a model is to be spread over these ranks; one that is alone holds all of it anyway."""
    return config.shard == "fsdp" and not ranks.alone


def check(model: SentenceTransformer) -> None:
    """ValueError: it is a model that cannot be spread over ranks."""
    if is_static(model):
        raise ValueError("shard fsdp: a static encoder has no layers to spread over ranks; leave it out")
    if not _layers(model):
        raise ValueError(f"shard fsdp: {type(model[0]).__name__} has no list of layers to spread over ranks")


def shard(
    model: SentenceTransformer, config: TrainConfig, ranks: Ranks, sides: Sequence[Side] | None = None
) -> None:
    """Leave each rank its part of rank 0's weights, in place: each layer is a unit, the rest is another.

    The model is on the CPU, whole, on every rank; layer by layer it moves to the device of the settings.

    Args:
        sides: of a model that is to be trained, whose weights are gathered in the half precision of the
            settings, if any: they were looked at while it was whole. None: it is to be evaluated.

    Raises:
        ValueError: it cannot be spread.
        ImportError: torch is older than 2.6.
    """
    from torch.distributed.device_mesh import init_device_mesh

    try:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    except ImportError:
        raise ImportError(f"shard fsdp takes torch 2.6 or later, this is {torch.__version__}") from None
    check(model)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0, group=ranks.patient)  # gloo, while rank 0 may be saving
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    mesh = init_device_mesh(device, (ranks.world,))
    # As autocast would cast them, but for norms; it casts the rest, as without FSDP.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if config.bf16 and sides is not None else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    model.register_forward_hook(_without_views)
    units: list[Any] = [*_layers(model), model]
    for unit in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    for side in sides or ():
        side.packed = side.packed and device == "cpu"
    for unit in units:  # what is first made whole in inference mode could not be trained
        unit.unshard()
        unit.reshard()
    # FSDP leaves the root whole after a pass, for the backward pass. Where none follows, weights that
    # change meanwhile would not be seen.
    model.register_forward_hook(lambda root, *_: None if torch.is_grad_enabled() else root.reshard())


def _without_views(_: Module, args: Any, features: dict[str, Any]) -> dict[str, Any]:
    """FSDP hangs the begin of a backward pass on what a model returns, and warns of a view, such as CLS."""
    return {
        name: value.clone() if isinstance(value, Tensor) and value._is_view() else value
        for name, value in features.items()
    }


def _layers(model: Module) -> list[Module]:
    """The members of a model's outermost lists of modules that have weights: what transformers repeat."""
    found: list[Module] = []
    for child in model.children():
        if isinstance(child, ModuleList):
            found += [layer for layer in child if any(True for _ in layer.parameters())]
        else:
            found += _layers(child)
    return found


# --- equally many chunks -----------------------------------------------------------------------------------


class Rounds:
    """Chunks of a sharded model, as many on every rank, each with a backward pass of its own.

    So FSDP sees backward passes one after the other, and reduces a unit's gradient to the ranks' parts of it
    in each. In one pass over all chunks autograd would hold the whole gradients; and a pass that runs again
    inside another would leave all units whole until they had theirs.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.waiting: list[tuple[Callable[[], Tensor], Tensor]] = []

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        self.waiting.clear()

    def agree(self, chunks: int, kept: int) -> tuple[int, int]:
        """The most chunks that a rank has, and how many of the first all of them keep activations of."""
        told = torch.tensor([chunks, -kept])
        dist.all_reduce(told, dist.ReduceOp.MAX, group=self.ranks.patient)  # by gloo: no GPU is waited for
        most, least = told.tolist()
        return most, -least

    def embed(self, run: Callable[[], Tensor], *, keep: bool) -> Tensor:
        """A chunk's embeddings, where the backward pass of the loss ends; :meth:`finish` goes on from there.

        Args:
            run: embeds it, once more in :meth:`finish` unless it is kept.
        """
        with torch.set_grad_enabled(keep):
            made = run()
        device = made.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)

        def again() -> Tensor:
            with torch.autocast(device, dtype, enabled=enabled):
                return run()

        embeddings = made.detach().requires_grad_()
        self.waiting.append(((lambda: made) if keep else again, embeddings))
        return embeddings

    def finish(self) -> None:
        """The model's gradients, averaged over the ranks, from those of all embeddings."""
        while self.waiting:  # the last first, and without its activations afterwards
            run, embeddings = self.waiting.pop()
            gradient = torch.zeros_like(embeddings) if embeddings.grad is None else embeddings.grad
            torch.autograd.backward(run(), gradient)


# --- parts and wholes --------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread over ranks; else the tensor."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tree: Any, *, keep: bool) -> Any:
    """A state with whole tensors, on the CPU, in the place of those that are spread over ranks.

    All ranks call this alike. Each tensor is whole on every device for a moment, one after the other.

    Args:
        keep: whether this rank wants them; it gets empty ones otherwise.
    """
    from torch.distributed.tensor import DTensor

    if isinstance(tree, DTensor):
        full = tree.full_tensor().detach()
        return full.cpu() if keep else full.new_empty(0, device="cpu")
    if isinstance(tree, Mapping):
        return {key: whole(value, keep=keep) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [whole(value, keep=keep) for value in tree]
    return tree


@torch.no_grad()
def fill(here: Tensor, there: Tensor) -> None:
    """The values of a whole tensor into one that may be spread over ranks, without asking others for any."""
    mine = local(here)
    if mine is not here:  # by FSDP: along the first axis, as torch.chunk cuts it
        own = there.chunk(here.device_mesh.size())  # type: ignore[attr-defined]
        rank = here.device_mesh.get_local_rank()  # type: ignore[attr-defined]
        there = own[rank] if rank < len(own) else there[:0]
    mine.copy_(there)


def parts_of(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with parts, as its weights have them, in the place of whole tensors.

    Raises:
        ValueError: rows of a table in it are behind the others (sparse embeddings).
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return state | {
        "state": {index: _parts(moments, weights[index]) for index, moments in state["state"].items()}
    }


def _parts(moments: dict[str, Any], weight: Tensor) -> dict[str, Any]:
    if "touched" in moments:
        raise ValueError(
            "shard fsdp: the checkpoint was written with sparse embeddings, not all of whose rows are up to "
            "date; go on without shard, or begin with sparse_embeddings false"
        )
    parts = dict(moments)
    for name, moment in moments.items():
        if isinstance(moment, Tensor) and moment.shape == weight.shape and moment.ndim:
            parts[name] = torch.zeros_like(weight, requires_grad=False)
            fill(parts[name], moment)
    return parts


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Of this rank's parts."""
    return sum(local(tensor).nbytes for tensor in tensors)
