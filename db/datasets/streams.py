"""Text files and stdin, decompressed on the way; memory does not grow with the file."""

import codecs
import gzip
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from db.errors import DatasetError

STDIN = "-"
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"
NOT_TEXT = {
    b"PAR1": "is Parquet; give --format parquet",
    b"PK\x03\x04": "is a zip archive, as an .xlsx workbook is: unpack it, or save the sheet as CSV (UTF-8)",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; save the sheet as CSV (UTF-8)",
    b"BZh91AY&SY": "is compressed by bzip2; unpack it, or compress it with gzip or zstd",
    b"\xfd7zXZ\x00": "is compressed by xz; unpack it, or compress it with gzip or zstd",
    b"7z\xbc\xaf\x27\x1c": "is a 7-Zip archive; unpack it",
    b"ARROW1": "is an Arrow file; save its table as Parquet",
    b"Obj\x01": "is Avro; convert it to Parquet or JSONL",
    b"SQLite format 3\x00": "is an SQLite database; export the table as CSV",
}
"""Files whose name says text, by their first bytes."""
BUFFER_BYTES = 1 << 20
LONGEST_LINE_BYTES = 64 << 20
"""A longer line is refused: a file without line ends must not fill the memory."""


def text_lines(source: str) -> Iterator[str]:
    """The lines of a UTF-8 file, or of stdin for `-`, with their ends; gzip and zstd are known by their first bytes.

    Raises:
        DatasetError: the file cannot be read, is cut short, or is not UTF-8; the message names the line.
    """
    return whole_lines(source, text_pieces(source))


def text_pieces(source: str) -> Iterator[str]:
    """The same, where a line longer than BUFFER_BYTES comes in several pieces."""
    number = 1
    try:
        with _opened(source) as file:
            decoder = codecs.getincrementaldecoder("utf-8")()
            is_first = True
            while piece := file.readline(BUFFER_BYTES):
                if is_first:
                    piece, is_first = _without_mark(piece, source), False
                yield decoder.decode(piece)
                number += piece.endswith(b"\n")
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        where = f"{error.reason} at byte {error.start}"
        raise DatasetError(f"{source}, line {number}: is not UTF-8 ({where}); save it as UTF-8") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        reason = reason_of(error)
        raise DatasetError(
            f"{source}, after line {number - 1}: its compression is broken ({reason}); get or make the file anew"
        ) from None
    except OSError as error:
        raise DatasetError(f"{source}, after line {number - 1}: cannot be read ({reason_of(error)})") from None


def whole_lines(source: str, pieces: Iterable[str]) -> Iterator[str]:
    """Lines put together from their pieces.

    Raises:
        DatasetError: a line is longer than LONGEST_LINE_BYTES.
    """
    begun: list[str] = []
    number, size = 1, 0
    for piece in pieces:
        if not begun and piece.endswith("\n"):
            yield piece
            number += 1
            continue
        begun.append(piece)
        size += len(piece)
        if size > LONGEST_LINE_BYTES:
            raise DatasetError(f"{source}, line {number}: is longer than {LONGEST_LINE_BYTES >> 20} MiB")
        if piece.endswith("\n"):
            yield "".join(begun)
            number, begun, size = number + 1, [], 0
    if begun:
        yield "".join(begun)


def reason_of(error: Exception) -> str:
    """Why something failed, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_mark(beginning: bytes, source: str) -> bytes:
    """The beginning of a file without its byte order mark.

    Raises:
        DatasetError: it is no text, or text of another encoding.
    """
    if beginning.startswith(UTF16_MARKS):
        raise DatasetError(f"{source}: is UTF-16; save it as UTF-8")
    for magic, what in NOT_TEXT.items():
        if beginning.startswith(magic):
            raise DatasetError(f"{source}: {what}")
    if b"\x00" in beginning:
        raise DatasetError(f"{source}: has NUL in its first line, so that it is UTF-16 or no text; save it as UTF-8")
    return beginning.removeprefix(UTF8_MARK)


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source == STDIN:
        yield _decompressed(cast(io.BufferedReader, sys.stdin.buffer), source)
        return
    with Path(source).open("rb", BUFFER_BYTES) as file:
        yield _decompressed(cast(io.BufferedReader, file), source)


def _decompressed(file: io.BufferedReader, source: str) -> BinaryIO:
    beginning = file.peek(len(ZSTD_MAGIC))
    if beginning.startswith(GZIP_MAGIC):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if beginning.startswith(ZSTD_MAGIC):
        try:
            import pyarrow as pa
        except ImportError:
            raise DatasetError(f"{source}: zstd needs pyarrow: pip install 'genarm[parquet]'") from None
        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(file, "zstd"), BUFFER_BYTES))
    return file
