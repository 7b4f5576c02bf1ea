"""The host link's frames (docs/boards.md) as numbers, for both ends. Imports no Amaranth."""

from enum import IntEnum

VERSION = 1
MAX_DATA = 1024
"""Bytes of data in a frame."""
QUEUE_BYTES = 128
"""Bytes on the line that the board holds while it is at work on a frame."""
HEADER_BYTES, CRC_BYTES = 8, 4
HELLO_BYTES = 16
"""Data of the answer to HELLO."""
END, ESCAPE, ESCAPED_END, ESCAPED_ESCAPE = 0xC0, 0xDB, 0xDC, 0xDD


class Op(IntEnum):
    """Byte 1 of a frame."""

    HELLO = 0
    READ_REG = 1
    WRITE_REG = 2
    READ_MEM = 3
    WRITE_MEM = 4
    ZERO_MEM = 5


class Status(IntEnum):
    """Byte 4 of an answer."""

    OK = 0
    CORRUPT = 1
    RESEND = 2
    NO_SESSION = 3
    REFUSED = 4
    BUS_ERROR = 5
