"""A decoder over a cache of fixed size whose rows may look one token ahead along several branches at once."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import sdpa_mask

ATTENTION = "grouped"


def grouped_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention in which the query heads of a group share its keys, which are never copied.

    Args:
        query: [rows, heads, new, dim].
        key, value: [rows, groups, tokens, dim].
        attention_mask: bool [rows, 1, new, tokens].
    """
    rows, heads, new, dim = query.shape
    groups = key.shape[1]
    together = query.reshape(rows, groups, heads // groups * new, dim)
    mask = attention_mask.repeat(1, 1, heads // groups, 1)
    out = torch.nn.functional.scaled_dot_product_attention(together, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(rows, heads, new, dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class FixedLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed
    """Keys and values of one layer in memory that is taken once."""

    is_sliding = False

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.filled = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Take the memory, as wide as the first states are."""
        rows, groups, _, dim = key_states.shape
        self.keys = key_states.new_zeros(rows, groups, self.room, dim)
        self.values = value_states.new_zeros(rows, groups, self.room, dim)
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write new states behind those that are kept; `filled` says how many are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.filled + key_states.shape[-2]
        self.keys[:, :, self.filled : end] = key_states
        self.values[:, :, self.filled : end] = value_states
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens that are kept."""
        return self.filled

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Tokens to attend to, and how many of the first ones are left out."""
        return self.filled + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that there is room for."""
        return self.room

    def keep(self, branches: Tensor) -> None:
        """Keep one of the tokens that were written last in each row, int64 [rows], and forget the others."""
        rows = torch.arange(len(branches))
        for states in (self.keys, self.values):
            states[:, :, self.filled] = states[rows, :, self.filled + branches]
        self.filled += 1


class TokenTree:
    """A decoder that has read prompts, and goes on by one token or looks at several possible ones; without gradients.

    Args:
        decoder: a transformers decoder without LM head, loaded with `attn_implementation=ATTENTION`.
        prompts: token ids.
        room: tokens after the longest prompt, the branches of the last step included.
    """

    def __init__(self, decoder: Any, prompts: list[list[int]], room: int) -> None:
        self.decoder = decoder
        longest = max(len(prompt) for prompt in prompts)
        self._layers = [FixedLayer(longest + room) for _ in range(decoder.config.num_hidden_layers)]
        self._cache = Cache(layers=self._layers)
        self._is_real = torch.zeros(len(prompts), longest + room, dtype=torch.bool)
        self._is_real[:, longest:] = True
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):  # prompts end where responses begin
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            self._is_real[row, longest - len(prompt) : longest] = True
        self._next = torch.tensor([len(prompt) for prompt in prompts])
        """The position of each row's next token."""
        positions = (torch.arange(longest) - longest + self._next[:, None]).clamp(min=0)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        mask = (causal & self._is_real[:, None, :longest]) | torch.eye(longest, dtype=torch.bool)
        self.states = self._run(ids, positions, mask)[:, -1]
        """Hidden states after each row's last token, [rows, hidden]."""
        for layer in self._layers:
            layer.filled = longest

    def _run(self, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        out = self.decoder(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        states: Tensor = out.last_hidden_state
        return states

    def look(self, tokens: Tensor) -> Tensor:
        """Hidden states after each of several possible next tokens, which do not see each other.

        Args:
            tokens: int64 [rows, branches].

        Returns:
            [rows, branches, hidden].
        """
        branches, filled = tokens.shape[1], self._layers[0].filled
        past = self._is_real[:, None, :filled].expand(-1, branches, -1)
        alone = torch.eye(branches, dtype=torch.bool).expand(len(tokens), -1, -1)
        return self._run(tokens, self._next[:, None].expand(-1, branches), torch.cat([past, alone], dim=2))

    def keep(self, branches: Tensor) -> None:
        """Go on along one of the branches that were looked at last, int64 [rows]."""
        for layer in self._layers:
            layer.keep(branches)
        self._next = self._next + 1

    def append(self, tokens: Tensor) -> None:
        """Go on by one token, int64 [rows]; `states` are those after it."""
        self.states = self.look(tokens[:, None])[:, 0]
        self.keep(torch.zeros_like(tokens))
