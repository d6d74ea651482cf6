"""Text files and stdin as lines, decompressed on the way; memory does not grow with the file."""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from db.errors import DatasetError

STDIN = "-"
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
UTF8_MARK = b"\xef\xbb\xbf"
BUFFER_BYTES = 1 << 20
LONGEST_LINE_BYTES = 64 << 20
"""A longer line is refused: a file without line ends must not fill the memory."""


def text_lines(source: str) -> Iterator[str]:
    """The lines of a UTF-8 file, or of stdin for `-`, with their ends; gzip and zstd are known by their first bytes.

    Raises:
        DatasetError: the file cannot be read, is cut short, or is not UTF-8; the message names the line.
    """
    number = 0
    try:
        with _opened(source) as file:
            while line := file.readline(LONGEST_LINE_BYTES + 1):
                number += 1
                if len(line) > LONGEST_LINE_BYTES:
                    raise DatasetError(f"{source}, line {number}: is longer than {LONGEST_LINE_BYTES >> 20} MiB")
                if number == 1:
                    line = _without_mark(line, source)
                yield line.decode()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source}, line {number}: is not UTF-8 ({error.reason} at byte {error.start})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        raise DatasetError(f"{source}, after line {number}: its compression is broken ({reason_of(error)})") from None
    except OSError as error:
        raise DatasetError(f"{source}, after line {number}: cannot be read ({reason_of(error)})") from None


def reason_of(error: Exception) -> str:
    """Why something failed, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _without_mark(line: bytes, source: str) -> bytes:
    if line.startswith(UTF16_MARKS):
        raise DatasetError(f"{source}: is UTF-16; save it as UTF-8")
    return line.removeprefix(UTF8_MARK)


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
