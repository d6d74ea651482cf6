"""The text of token ids, as bytes: a character may be spread over several tokens."""

import re
from collections.abc import Iterable
from typing import Any

BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
SPACE = "▁"
"""How SentencePiece writes a space."""


def token_texts(tokenizer: Any, ids: Iterable[int]) -> dict[int, bytes]:
    """The bytes that each id stands for; joined, those of a completion are its text."""
    alphabet = _byte_alphabet() if _is_byte_level(tokenizer) else {}
    special = set(tokenizer.all_special_ids)
    return {index: _bytes(tokenizer.convert_ids_to_tokens(index), index in special, alphabet) for index in ids}


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in str(backend.decoder)


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level tokenizers write the 256 bytes (GPT-2's table)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _bytes(token: str | None, is_special: bool, alphabet: dict[str, int]) -> bytes:
    if token is None:
        return b""
    if not is_special and alphabet and all(letter in alphabet for letter in token):
        return bytes(alphabet[letter] for letter in token)
    as_byte = BYTE_TOKEN.fullmatch(token)
    if as_byte:
        return bytes([int(as_byte[1], 16)])
    return token.replace(SPACE, " ").encode(errors="replace")
