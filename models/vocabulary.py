"""The real vocabulary of a model, and the ids that a base and its ARMs share."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from models.errors import IncompatibleArmError

RESERVED = re.compile(r"reserved|unused|placeholder|dummy|extra_id", re.IGNORECASE)
"""In the names that models give tokens which they never saw: <|reserved_special_token_0|>, <unused1>, <extra_id_0>."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that a model's tokenizer knows; rows of the LM head beyond them are padding."""

    tokens: dict[int, str]
    """Token by id."""

    @classmethod
    def of(cls, tokenizer: Any, rows: int) -> "Vocabulary":
        """The vocabulary of a tokenizer, cut to the `rows` of its model's LM head."""
        return cls({index: token for token, index in tokenizer.get_vocab().items() if index < rows})

    @cached_property
    def size(self) -> int:
        """One more than the highest id."""
        return max(self.tokens, default=-1) + 1

    @cached_property
    def holes(self) -> tuple[int, ...]:
        """Ids below `size` that no token has."""
        return tuple(index for index in range(self.size) if index not in self.tokens)


def differing_tokens(base: Vocabulary, arm: Vocabulary) -> list[tuple[int, str, str]]:
    """The ids that both vocabularies have, but for different tokens: (id, the base's token, the ARM's token)."""
    return [
        (index, token, arm.tokens[index])
        for index, token in sorted(base.tokens.items())
        if index in arm.tokens and arm.tokens[index] != token
    ]


def reserved(base: Vocabulary, differing: Sequence[tuple[int, str, str]]) -> list[int]:
    """Ids that the base reserves, and a fine-tune gave another name: they mean nothing to it, and are not generated.

    Args:
        differing: as `differing_tokens` gives them.
    """
    return [index for index, token, _ in differing if RESERVED.search(token)]


def require_fit(base: Vocabulary, arm: Vocabulary, base_name: str, arm_name: str) -> None:
    """Check that a base and an ARM mean the same tokens by the ids that they share.

    Ids of one side alone are allowed, and those that the base reserves: they are not generated.

    Raises:
        IncompatibleArmError: they do not; the message says which tokens differ.
    """
    differing = differing_tokens(base, arm)
    ignored = set(reserved(base, differing))
    differing = [one for one in differing if one[0] not in ignored]
    if not differing:
        return
    shown = ", ".join(
        f"id {index} is {token!r} in the base, {other!r} in the ARM" for index, token, other in differing[:3]
    )
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise IncompatibleArmError(
        f"ARM {arm_name!r} does not share the tokenizer of base {base_name!r}: {shown}{more}; "
        "guidance needs an ARM trained with the base's tokenizer"
    )


def shared_ids(vocabularies: Sequence[Vocabulary]) -> tuple[int, tuple[int, ...]]:
    """The ids that every vocabulary has for the same token: (size, excluded), all ids below `size` but those excluded.

    Args:
        vocabularies: the base's, then the ARMs', which fit it.
    """
    base, *arms = vocabularies
    size = min(vocabulary.size for vocabulary in vocabularies)
    excluded = {index for vocabulary in vocabularies for index in vocabulary.holes if index < size}
    excluded |= {index for arm in arms for index, *_ in differing_tokens(base, arm) if index < size}
    return size, tuple(sorted(excluded))
