"""A lock on a file that the kernel owns: free the moment its owner dies, kept while its owner is stopped."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from weakref import WeakSet

from hpo.errors import StorageError

MOUNTS = Path("/proc/self/mountinfo")  # Linux only; elsewhere nothing is known, and nothing refused

# Where flock may hold on one machine only, or not at all, and SQLite's shared memory never works.
NETWORK = re.compile(
    r"(nfs|cifs|smb|lustre|ceph|glusterfs|gpfs|beegfs|fhgfs|panfs|wekafs|afs|orangefs|pvfs|ocfs|gfs2|ncpfs"
    r"|fuse\.(sshfs|glusterfs|ceph|s3fs|gcsfuse|rclone|juicefs|cephfs|smbnetfs|davfs|goofys|blobfuse|mount-s3)).*"
)


class Flock:
    """A lock on a file, held by this process and none that it forks; the file stays when it is released.

    `filelock` asks again every 50 ms, for which a record of a journal cannot wait, and does not notice when its file
    has been replaced.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        _every.add(self)

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; False if it is held, by this process too, and `wait` is not asked for."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                if self._same(descriptor):  # else the file was replaced in between: the lock is on the other one
                    self._descriptor, descriptor = descriptor, -1
                    return True
            except BlockingIOError:
                return False
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def held(self) -> bool:
        """Return whether the lock is held, and its file still the one that others would lock."""
        return self._descriptor is not None and self._same(self._descriptor)

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also for a child between its fork and its exec
            self.let_go()

    def let_go(self) -> None:
        """Close the file, which frees the lock only if no other process has inherited it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _same(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except OSError:
            return False

    def __enter__(self) -> Flock:
        """Wait for the lock."""
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()


_every: WeakSet[Flock] = WeakSet()


def _let_go() -> None:
    """Close what a forked child has inherited: it would keep the lock of its parent after that one's death."""
    for lock in _every:
        lock.let_go()


os.register_at_fork(after_in_child=_let_go)


def refuse_network(path: Path) -> None:
    """Refuse a place on a network file system.

    Raises:
        StorageError: It is on one; names the file system and where it is mounted.
    """
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    place, found = path.resolve(), (Path("/"), "unknown")
    for line in lines:
        left, _, right = line.partition(" - ")
        mounted = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4]))
        if place.is_relative_to(mounted) and len(mounted.parts) >= len(found[0].parts):  # of equals the last is on top
            found = mounted, right.split()[0]
    if NETWORK.fullmatch(found[1]):
        raise StorageError(
            f"{path} is on a network file system ({found[1]}, mounted at {found[0]}), where file locks are not to be "
            "relied on. Choose a place on a disk of this machine, or PostgreSQL: --storage postgresql://user@host/database"
        )
