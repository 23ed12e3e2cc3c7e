"""A policy's tokens as byte ranges of the text they make: how rewards reach a policy that has another tokenizer.

The text is made of the ids, never tokenised again, so every range is one of the policy's own tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

CHANGES = "this tokenizer's decoder changes text that it gave before: give spans of your own"


def token_spans(tokenizer, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of ``ids`` and, for each of them, its byte range in that text.

    ``tokenizer`` is a ``transformers`` tokenizer. Tokens of byte-level BPE (GPT-2, Llama 3, Qwen) may hold parts of a
    character: their ranges then cut it, which the server takes. Bytes that are no UTF-8 become U+FFFD in the text, as in
    every decoder, and the ranges follow. Other tokenizers are decoded token after token.
    """
    ids = [int(id) for id in ids]
    pieces = _byte_pieces(tokenizer, ids) if _is_byte_level(tokenizer) else _decoded_pieces(tokenizer, ids)
    ends, total = [], 0
    for piece in pieces:
        total += len(piece)
        ends.append(total)
    text, place = _repair(b"".join(pieces))
    ends = [place(end) for end in ends]
    return text, list(zip([0, *ends[:-1]], ends))


def _is_byte_level(tokenizer) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}  # all of the backend is megabytes
    return any(d.get("type") == "ByteLevel" for d in [decoder, *decoder.get("decoders", [])])


@lru_cache(maxsize=1)
def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's alphabet: a printable character for every byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(hidden)}


def _byte_pieces(tokenizer, ids: list[int]) -> list[bytes]:
    alphabet, added = _bytes_of_characters(), tokenizer.added_tokens_decoder
    pieces = []
    for id, token in zip(ids, tokenizer.convert_ids_to_tokens(ids)):
        if id in added or any(c not in alphabet for c in token):
            pieces.append(str(added.get(id, token)).encode())
        else:
            pieces.append(bytes(alphabet[c] for c in token))
    return pieces


def _decoded_pieces(tokenizer, ids: list[int]) -> list[bytes]:
    """What each token adds to the text before it; a character in several tokens belongs to the last of them.

    Decoded is a window that begins with the tokens of the last whole piece: they say how the next goes on (with a space or
    without), and all from the first token anew would cost the square of the length.
    """

    def decode(begin: int, end: int) -> str:
        return tokenizer.decode(ids[begin:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    pieces, begin, read, done = [], 0, 0, ""
    for n in range(1, len(ids) + 1):
        text = decode(begin, n)
        partial = text.endswith("\ufffd") and n < len(ids)
        if partial:  # of a character: what is whole is known, and the window grows
            whole = text.rstrip("\ufffd")
            text = whole if whole.startswith(done) else done
        if not text.startswith(done):
            raise ValueError(CHANGES)
        pieces.append(text[len(done):])
        if partial:
            done = text
        elif text != done or n > read + 1:
            begin, read = read, n
            done = decode(begin, read)
    if "".join(pieces) != decode(0, len(ids)):
        raise ValueError(CHANGES)
    return [piece.encode() for piece in pieces]


def _repair(data: bytes):
    """``data`` as text, and where a byte of it lies in that text's bytes."""
    text, runs, at = "", [], 0
    while at < len(data):
        try:
            text += data[at:].decode()
            break
        except UnicodeDecodeError as error:
            begin, end = at + error.start, at + error.end
            text += data[at:begin].decode() + "\ufffd"
            runs.append((begin, end))
            at = end

    def place(byte: int) -> int:
        shift = 0
        for begin, end in runs:
            if byte <= begin:
                break
            if byte < end:
                return begin + shift
            shift += len("\ufffd".encode()) - (end - begin)
        return byte + shift

    return text, place
