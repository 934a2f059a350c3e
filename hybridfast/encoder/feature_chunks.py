"""Parts of a batch of features as sentence-transformers' trainer makes them, to be embedded one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

__all__ = ["embed_again", "taken", "tokens_of"]


def embed_again(model: Any, inner: Any, features: dict[str, Any]) -> torch.Tensor:
    """The embeddings by `model`, whose activations are computed again, by `inner`, when they are needed."""
    called = False

    def run(features: dict[str, Any]) -> torch.Tensor:
        nonlocal called
        module, called = (inner if called else model), True
        # Copies: a module may change them, as Pooling does that leaves out the prompt.
        copies = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        embeddings: torch.Tensor = module(copies)["sentence_embedding"]
        return embeddings

    if not torch.is_grad_enabled():
        return run(features)
    embeddings: torch.Tensor = checkpoint(run, features, use_reentrant=False)
    return embeddings


def tokens_of(features: dict[str, Any]) -> torch.Tensor | None:
    """The tokens of each text and the padding before them; None of a static encoder, which keeps nothing."""
    if "offsets" in features:
        return None
    if "cu_seq_lens_q" in features:
        return features["cu_seq_lens_q"].cpu().long().diff()
    if "attention_mask" not in features:
        raise ValueError(
            "mini_batch_num_tokens needs a model that reads token ids with an attention mask, this one reads "
            f"{', '.join(features)}"
        )
    mask_BT = features["attention_mask"].cpu().bool()
    # Padding in front stays: a model may count positions from there.
    places_T = torch.arange(1, mask_BT.shape[1] + 1)
    return (mask_BT * places_T).amax(dim=1)


def taken(features: dict[str, Any], rows: torch.Tensor, places_B: torch.Tensor) -> dict[str, Any]:
    """The features of some of the texts, padded no longer than they need."""
    packed = "cu_seq_lens_q" in features
    whole = int(places_B.sum()) if packed else len(places_B)
    lengths, ends_B = places_B[rows], places_B.cumsum(0)
    width, longest = (0 if packed else features["attention_mask"].shape[1]), int(lengths.max())
    spans = [torch.arange(int(ends_B[row] - places_B[row]), int(ends_B[row])) for row in rows]
    index_T = torch.cat(spans) if packed else None

    def of(name: str, value: Any) -> Any:
        if name.startswith("cu_seq_lens"):
            return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(value)
        if name.startswith("max_length"):
            return longest
        if name == "seq_idx":
            return torch.arange(len(rows)).repeat_interleave(lengths)[None].to(value)
        if not isinstance(value, torch.Tensor) or not value.ndim:
            return value
        if index_T is not None and value.shape[-1] == whole:
            return value[..., index_T.to(value.device)]
        if index_T is None and len(value) == whole:
            value = value[rows.to(value.device)]
            return value[:, :longest] if value.ndim > 1 and value.shape[1] == width else value
        raise ValueError(
            f"mini_batch_num_tokens cannot take texts out of {name} of shape {tuple(value.shape)}"
        )

    return {name: of(name, value) for name, value in features.items()}
