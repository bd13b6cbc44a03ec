"""Read remote files like local ones: in blocks, each fetched at its first use and kept on disk.

https://host/a.jsonl.zst        an HTTP server; https://host/corpus/ lists its files in files.txt,
                                one name a line
s3://bucket/corpus/             an object store, through fsspec and its own package (s3fs, gcsfs,
                                …); memory:// and file:// need none
"""

from __future__ import annotations

import io
import string
import threading
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol
from urllib.parse import quote, urljoin, urlsplit

from thinwire.data._specs import extra
from thinwire.data.corpus.files import is_text_file
from thinwire.data.remote.disk import DiskCache
from thinwire.data.remote.http import About, Http
from thinwire.data.remote.leads import HTTP, host_of, must_be_allowed
from thinwire.errors import DataError
from thinwire.text.words import error_text

BLOCK_BYTES = 1 << 22
FILES = "files.txt"
VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "LastModified",
    "last_modified",
    "mtime",
    "modify",
    "created",
)  # as stores and servers call them


class Store(Protocol):
    """An HTTP server or an object store."""

    def about(self, url: str) -> About:
        """Return the size and version of a file.

        Raises:
            DataError: there is none, or it cannot be had.
        """

    def read(self, url: str, begin: int, end: int, about: About) -> bytes:
        """Return the bytes from `begin` to `end`.

        Raises:
            DataError: they cannot be had, or are of another file by now.
        """


class Objects:
    """An object store, or whatever else fsspec opens."""

    def __init__(self, url: str) -> None:
        with extra(f"the address {url!r}", "hub"):
            import fsspec  # type: ignore[import-untyped, unused-ignore]

            try:
                self._system, _ = fsspec.core.url_to_fs(url)
            except ValueError as error:
                raise DataError(
                    f"{url!r} is of no kind that fsspec opens ({error_text(error)})"
                ) from error
        # Several threads fetch; where fsspec is not asynchronous (ftp, sftp), they would use
        # one connection at once.
        self._turn: AbstractContextManager[Any] = (
            nullcontext() if self._system.async_impl else threading.Lock()
        )

    def about(self, url: str) -> About:
        # which would tell what was there when the folder was listed
        self._system.invalidate_cache()
        info = self._request(url, self._system.info)
        if info.get("type") == "directory" or info.get("size") is None:
            raise DataError(
                f"{url!r} is no file of a known size; give a file, or a folder with a / at its end"
            )
        version = next((info[key] for key in VERSIONS if info.get(key)), "")
        return About(int(info["size"]), str(version))

    def read(self, url: str, begin: int, end: int, about: About) -> bytes:
        data: bytes = self._request(
            url, lambda path: self._system.cat_file(path, start=begin, end=end)
        )
        # A short answer is an error, and so is a file that changed between two reads.
        if len(data) != end - begin:
            raise DataError(
                f"{url!r}: {len(data)} bytes came where {end - begin} lie: it was cut or changed; "
                "start again"
            )
        if about.version and self.about(url) != about:
            raise DataError(
                f"{url!r} has changed while it was read: start again once it stays as it is"
            )
        return data

    def below(self, url: str) -> list[str]:
        """List the URLs of all files below a folder, sorted."""
        files = self._request(url, self._system.find)
        return sorted(str(self._system.unstrip_protocol(path)) for path in files)

    def _request(self, url: str, call: Callable[[str], Any]) -> Any:
        try:
            with self._turn:
                return call(self._system._strip_protocol(url))
        except (
            Exception
        ) as error:  # whatever the store's own client may raise; the user needs its line only
            raise DataError(
                f"{url!r} cannot be read ({error_text(error)}): check the address, and that you "
                "may read there"
            ) from error


def is_address(source: str) -> bool:
    """Return whether a text is named by a URL.

    Example:
        >>> [is_address(text) for text in ("https://host/a.txt", "s3://bucket/")]
        [True, True]
        >>> [is_address(text) for text in ("notes/a.txt", "hf:name")]
        [False, False]
    """
    return "://" in source


def store_of(url: str, hosts: Collection[str] = ()) -> Store:
    """Return the store of a URL. hosts: other hosts that it may lead to.

    Raises:
        DataError: nothing can be read there.
    """
    if "::" in url.partition("//")[0]:
        raise DataError(
            f"{url!r} is a chain of addresses: give the last of them alone, without what stands "
            "before ::"
        )
    if urlsplit(url).scheme.lower() in HTTP:
        return Http(hosts={*hosts, host_of(url) or ""})
    return Objects(url)


def files_at(url: str, store: Store | None = None, hosts: Collection[str] = ()) -> list[str]:
    """List the URLs of the text files of a source: itself, or those below it if it ends with a `/`.

    Args:
        url: the source.
        store: what reads there.
        hosts: that a list of files may name, beside the source's own.

    Raises:
        DataError: there is none, the list cannot be had, or leads where it may not.
    """
    store = store or store_of(url, hosts)
    if not url.endswith("/"):
        return [url]
    # An object store lists its files; an HTTP server needs a list, each line of which may lead
    # astray.
    if isinstance(store, Objects):
        files = [each for each in store.below(url) if is_text_file(each.removeprefix(url))]
    else:
        listing = joined(url, FILES)
        about = store.about(listing)
        names = store.read(listing, 0, about.size, about).decode(errors="replace").split("\n")
        files = [
            must_be_allowed(listing, joined(url, name.strip()), hosts)
            for name in names
            if name.strip()
        ]
    if not files:
        raise DataError(
            f"{url!r} holds no text files; put some "
            f"there{'' if isinstance(store, Objects) else f', and their names in {FILES}'}"
        )
    return files


def joined(location: str, name: str) -> str:
    """Return the URL of a file below a location that ends with a `/`.

    Example:
        >>> joined("https://host/set/", "my file"), joined("s3://bucket/set/", "my file")
        ('https://host/set/my%20file', 's3://bucket/set/my file')
    """
    is_http = urlsplit(location).scheme.lower() in HTTP  # `urljoin` knows no other schemes
    return urljoin(location, quote(name, safe=string.punctuation)) if is_http else location + name


def name_of(url: str) -> str:
    """Return the last part of a URL's path, whose suffixes say what the file is.

    Example:
        >>> name_of("https://host/a/letters.jsonl.zst?key=1")
        'letters.jsonl.zst'
    """
    return urlsplit(url).path.rpartition("/")[2]


class RemoteFile(io.RawIOBase):
    """A remote file that can be read and sought like a local one.

    Args:
        url: its address.
        store: where it lies.
        cache: keeps its blocks.
        block_bytes: fetched at once.
    """

    def __init__(
        self, url: str, store: Store, cache: DiskCache, block_bytes: int = BLOCK_BYTES
    ) -> None:
        super().__init__()
        self.url, self.about = url, store.about(url)
        self._store, self._cache, self._block_bytes, self._at = store, cache, block_bytes, 0
        self._held: tuple[int, memoryview] | None = None  # the block that was read last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(
            0,
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.about.size}[whence],
        )
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at >= self.about.size or not len(view):
            return 0
        number, offset = divmod(self._at, self._block_bytes)
        data = self._block(number)[offset : offset + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _block(self, number: int) -> memoryview:
        if self._held is not None and self._held[0] == number:
            return self._held[1]
        begin = number * self._block_bytes
        end = min(begin + self._block_bytes, self.about.size)
        key = f"{self.url}\n{self.about.size}\n{self.about.version}\n{begin}\n{end}"
        self._held = (
            number,
            self._cache.get(key, lambda: self._store.read(self.url, begin, end, self.about)),
        )
        return self._held[1]
