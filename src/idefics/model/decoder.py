"""The decoders, Mistral (arXiv 2310.06825) and LLaMA: grouped-query attention, rotary positions, sliding window.

Letters: B rows, T new tokens, S all tokens, D hidden size, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from idefics.config import TextConfig
from idefics.model.cache import KVCache, NoCache
from idefics.model.layers.attention import Backend
from idefics.model.layers.linear import Linears, SharedInput
from idefics.model.layers.mlp import GatedMLP
from idefics.model.layers.norm import RMSNorm
from idefics.model.layers.rope import rotary_angles, rotate

__all__ = ["Angles", "Decoder", "DecoderAttention", "DecoderLayer"]


@dataclass(frozen=True, eq=False)
class Angles:
    """By what all layers of one pass turn queries and keys: cosines and sines of the new tokens' positions."""

    cos: Tensor
    sin: Tensor


class DecoderAttention(SharedInput):
    """Causal attention of new tokens over themselves and the cache."""

    shared = Linears(names=("q_proj", "k_proj", "v_proj"), slot="joined", split="heads")
    linears = (shared, Linears(names=("o_proj",), split="rows"))

    def __init__(self, config: TextConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        size, head = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(size, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(size, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(size, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, size, bias=False)
        self.head_dim = head
        self.layer = layer
        self.backend = backend

    def forward(self, x_BTD: Tensor, angles: Angles, cache: KVCache) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q, k, v = (projected.view(heads).transpose(1, 2) for projected in self.projections(x_BTD))
        q, k = rotate(q, angles.cos, angles.sin), rotate(k, angles.cos, angles.sin)
        out_BHTK = cache.attend(self.layer, q, k, v, backend=self.backend)
        out: Tensor = self.o_proj(out_BHTK.transpose(1, 2).flatten(2))
        return out


class DecoderLayer(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: TextConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = DecoderAttention(config, layer, backend)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, config.hidden_size, activation=config.hidden_act)

    def forward(self, x_BTD: Tensor, angles: Angles, cache: KVCache) -> Tensor:
        """Maps (B, T, D) to (B, T, D)."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), angles, cache)
        out: Tensor = x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        return out


class Decoder(nn.Module):
    """Embeddings to hidden states; the head that turns these into logits belongs to the whole model."""

    def __init__(self, config: TextConfig, backend: Backend) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, backend) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.config = config

    def in_order(self) -> Iterator[tuple[str, nn.Module]]:
        """Parts that are computed one after the other, by name."""
        yield "embed_tokens", self.embed_tokens
        yield from ((f"layers.{index}", layer) for index, layer in enumerate(self.layers))
        yield "norm", self.norm

    def begin(
        self, x_BTD: Tensor, *, positions_BT: Tensor, key_mask_BS: Tensor | None, cache: KVCache | None
    ) -> tuple[Angles, KVCache]:
        """What all layers of a pass over these new tokens share; arguments as of `forward`."""
        if cache is None:
            cache = NoCache(self.config.sliding_window)
        cache.start(x_BTD.shape[1], key_mask_BS, x_BTD.device)
        cos, sin = rotary_angles(positions_BT, head_dim=self.config.head_dim, theta=self.config.rope_theta, dtype=x_BTD.dtype)
        return Angles(cos=cos, sin=sin), cache

    def forward(self, x_BTD: Tensor, *, positions_BT: Tensor, key_mask_BS: Tensor | None, cache: KVCache | None) -> Tensor:
        """Runs T new tokens through all layers.

        Args:
            x_BTD: embeddings of the new tokens, latents already in place.
            positions_BT: their positions (padding does not count).
            key_mask_BS: bool over cached and new tokens, False for padding; None when nothing is padding.
            cache: keys and values of the tokens before, to which the new ones' are appended; None starts from nothing.

        Returns:
            Normed hidden states (B, T, D).
        """
        return self.run(x_BTD, positions_BT=positions_BT, key_mask_BS=key_mask_BS, cache=cache)

    def run(
        self,
        x_BTD: Tensor,
        *,
        positions_BT: Tensor,
        key_mask_BS: Tensor | None,
        cache: KVCache | None,
        before: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """As `forward`; `before` is what becomes of the hidden states before each layer, told which."""
        angles, cache = self.begin(x_BTD, positions_BT=positions_BT, key_mask_BS=key_mask_BS, cache=cache)
        for index, layer in enumerate(self.layers):
            x_BTD = x_BTD if before is None else before(index, x_BTD)
            x_BTD = layer(x_BTD, angles, cache)
        cache.advance(x_BTD.shape[1])
        out: Tensor = self.norm(x_BTD)
        return out
