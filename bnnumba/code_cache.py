"""Compiled code on disk: where it is kept, what it depends on, and that it may fail."""

import functools
import hashlib
import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numba
from numba import config
from numba.core.caching import CompileResultCacheImpl, IndexDataCacheFile

__all__ = ["CodeFiles", "code_files", "forgiving", "not_kept", "source_stamp"]

_DIGEST = hashlib.sha256().digest_size

# Why code could not be saved, for each version that was not.
not_kept: list[OSError] = []


@functools.cache
def source_stamp(*directories: pathlib.Path) -> str | None:
    """Return a digest of the sources in some directories and of what changes their machine code.

    Numba's stamp is that of the file that a function stands in, not of what it calls, so a cached
    kernel would go stale silently when a helper in another file changed. None is returned for a
    zipped package: there Numba's own stamp, the archive's, covers every file.
    """
    digest = hashlib.sha256()
    for directory in sorted(set(directories)):
        paths = sorted(directory.glob("*.py"))
        if not paths:
            return None
        for path in paths:
            try:
                digest.update(path.read_bytes())
            except OSError:
                return None
    digest.update(f"boundscheck={config.BOUNDSCHECK}, opt={config.OPT}".encode())
    return digest.hexdigest()


class CodeFiles(IndexDataCacheFile):
    """The compiled versions of one function, each in a file that is named by its key.

    Numba numbers these files and keeps an index of them. Of two processes that save at the same
    time, each may take the same number; whoever asks for the one version is then given the other.
    """

    def save(self, key: Any, data: Any) -> None:
        """Keep a version."""
        self._save_data(self._file_of(key), (self._source_stamp, key, data))

    def load(self, key: Any) -> Any:
        """Return a version, or None where there is none of these sources."""
        kept = self._load_data(self._file_of(key))
        return kept[2] if kept and kept[:2] == (self._source_stamp, key) else None

    def _dump(self, obj: Any) -> bytes:
        data = super()._dump(obj)
        return hashlib.sha256(data).digest() + data

    def _load_data(self, name: str) -> Any:
        data = pathlib.Path(self._data_path(name)).read_bytes()
        # Damaged code, cut short or with a page of zeros, would end the process.
        if hashlib.sha256(data[_DIGEST:]).digest() != data[:_DIGEST]:
            return None
        return pickle.loads(data[_DIGEST:])

    def _file_of(self, key: Any) -> str:
        # What another Numba has pickled is not even read.
        digest = hashlib.sha256(repr((numba.__version__, key)).encode()).digest()
        return self._data_name(int.from_bytes(digest[:8], "big"))


def code_files(place: CompileResultCacheImpl, stamp: str | None) -> CodeFiles:
    """Return the files of a function.

    Parameters
    ----------
    place : CompileResultCacheImpl
        Numba's choice of a directory, and of a name, for the function.
    stamp : str or None
        Of all sources that its code comes from, or None for Numba's own.
    """
    locator = place.locator
    stamp = locator.get_source_stamp() if stamp is None else stamp
    return CodeFiles(locator.get_cache_path(), place.filename_base, stamp)


def forgiving(use_files: Callable, failures: list[OSError] | None = None) -> Callable:
    """Return a function that loads or saves, and returns None where a file cannot be used.

    The disk is full, the directory went away: compiled code is then kept in memory alone. The
    errors are appended to `failures`.
    """

    def use_files_or_not(*arguments: Any) -> Any:
        try:
            return use_files(*arguments)
        except OSError as error:
            if failures is not None:
                failures.append(error)
            return None

    return use_files_or_not
