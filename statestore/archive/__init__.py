r"""An archive: several states with their entries in one file, read and written in one pass.

It is what `statestore export` writes and `import` reads, between stores and between releases.
Containers travel as they are: encoded, or encrypted, as they lay in the store. Never pickle. All
numbers little-endian, format version 1:

    0       8    magic 89 52 57 4B 56 41 52 0A  ("\x89RWKVAR\n")
    8       4    format version
    12      4    length n of what is said about the archive
    16      16   xxh3_128 over bytes 0..16 and those n
    32      n    MessagePack, a map of texts that no decision of a reader rests on

then one record after the other:

    0       4    "STAT", or "DONE" for the last one
    4       4    length e of the entry
    8       8    length b of the blob
    16      16   xxh3_128 of the blob
    32      16   xxh3_128 over bytes 0..32 and the entry
    48      e    the entry (`entries`): MessagePack, one spelling
    48+e    b    the blob: a container, see `statestore.codec`

The last record has no blob; its entry is ``[number of states, SHA-256]``, the hash taken over bytes
0..48 of every record before it, and over bytes 0..32 of the archive. Nothing comes after it. So
each record is checked by itself, the whole at its end, and an archive that was cut off is sound up
to there. Lengths are under a checksum and held against limits ahead of any allocation; a format
version that a reader does not know is refused by name.
"""

from __future__ import annotations

from statestore.archive.format import FORMAT_VERSION, MAGIC
from statestore.archive.reading import ArchiveReader, Record
from statestore.archive.writing import ArchiveWriter, Resumed, resume

__all__ = [
    "FORMAT_VERSION",
    "MAGIC",
    "ArchiveReader",
    "ArchiveWriter",
    "Record",
    "Resumed",
    "resume",
]
