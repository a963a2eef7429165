"""A lock on a file that the kernel owns: free the moment its owner dies, kept while its owner is stopped."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn
from weakref import WeakSet

from hpo.core.errors import StorageError

MOUNTS = Path("/proc/self/mountinfo")  # Linux only; elsewhere nothing is known, and nothing refused

# Where flock may hold on one machine only, or not at all, and SQLite's shared memory never works.
NETWORK = re.compile(
    r"(nfs|cifs|smb|lustre|ceph|glusterfs|gpfs|beegfs|fhgfs|panfs|wekafs|afs|orangefs|pvfs|ocfs|gfs2|ncpfs"
    r"|fuse\.(sshfs|glusterfs|ceph|s3fs|gcsfuse|rclone|juicefs|cephfs|smbnetfs|davfs|goofys|blobfuse|mount-s3)).*"
)


PACE = 0.0002, 0.02  # seconds between two attempts to take a lock: the first, and the longest

HOLDER = re.compile(rb"process \d+ on [\w.-]+")


def this_process() -> str:
    """Return what a lock says of who holds it: `process 12 on host`."""
    return f"process {os.getpid()} on {socket.gethostname()}"


class LockFolder:
    """The folder of a storage's lock files, beside its file: whoever can open a lock file can block a study.

    It belongs to the database's owner alone or, where the group may write the database, to that group. As SQLite does
    with the files that it adds, root makes it the owner's.

    Args:
        file: The storage's file, which need not exist.

    Raises:
        StorageError: It would be on a network file system.
    """

    def __init__(self, file: str | Path) -> None:
        refuse_network(Path(file))
        self.database = Path(file).resolve()  # the same for all processes, wherever they work
        self.path = self.database.with_name(f"{self.database.name}.locks")

    def lock(self, *names: str) -> FileLock:
        """Return a lock on a file of the folder, which is made when the lock is taken."""
        return FileLock(self.path.joinpath(*names), self)

    def make(self, inner: Path) -> None:
        """Make the folder, and one in it, or check that nobody else can open what is in it.

        Raises:
            StorageError: It is a link, belongs to somebody else, or everybody can write in it.
        """
        with suppress(FileExistsError):
            self.path.mkdir(0o700)
        found = os.lstat(self.path)
        _, uid, gid = self._access()
        if stat.S_ISLNK(found.st_mode):
            self._refuse("is a symbolic link")
        if not stat.S_ISDIR(found.st_mode):
            self._refuse("is not a folder")
        if found.st_uid not in (uid, os.geteuid()) and found.st_gid != gid:
            self._refuse(f"belongs to another user (uid {found.st_uid})")
        if found.st_mode & stat.S_IWOTH:
            self._refuse(f"can be written by everybody (mode {stat.S_IMODE(found.st_mode):o})")
        self.settle(self.path)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            self._refuse("is closed to this user")
        if inner != self.path:
            with suppress(FileExistsError):
                inner.mkdir(0o700)
            self.settle(inner)

    def settle(self, what: Path | int) -> None:
        """Give a folder or an open file the owner, group and mode that it must have, where that is ours to do."""
        mode, uid, gid = self._access()
        found = os.stat(what)
        if os.geteuid() not in (0, found.st_uid):
            return
        mode = mode if stat.S_ISDIR(found.st_mode) else mode & 0o660
        uid = uid if os.geteuid() == 0 else found.st_uid
        if (found.st_uid, found.st_gid) != (uid, found.st_gid if gid is None else gid):
            os.chown(what, uid, -1 if gid is None else gid)
        if stat.S_IMODE(os.stat(what).st_mode) != mode:
            os.chmod(what, mode)

    def _access(self) -> tuple[int, int, int | None]:
        """Return the mode of a folder, its owner, and its group if it is shared with one."""
        try:
            kept = os.stat(self.database)
        except FileNotFoundError:
            return 0o700, os.geteuid(), None
        return (0o2770, kept.st_uid, kept.st_gid) if kept.st_mode & stat.S_IWGRP else (0o700, kept.st_uid, None)

    def _refuse(self, what: str) -> NoReturn:
        raise StorageError(
            f"{self.path} has the locks of {self.database.name} and {what}. Locks that others can open could block its "
            "studies. While none of them runs, remove the folder, or share it with the group of the database "
            f"(chmod g+w {self.database.name}), and run the same command again"
        )


class FileLock:
    """A lock on a file, held by this process and none that it forks; the file stays when it is released.

    `filelock` asks again every 50 ms, for which a record of a journal cannot wait, and does not notice when its file
    has been replaced.

    Args:
        path: The file.
        folder: What makes the folder of the file, and keeps others out; if None, everybody may lock the file.
    """

    def __init__(self, path: Path, folder: LockFolder | None = None) -> None:
        self._path, self._folder = path, folder
        self._descriptor: int | None = None
        _every.add(self)

    def acquire(self, *, limit: float = math.inf) -> bool:
        """Take the lock, and write into the file who holds it.

        Args:
            limit: Seconds to wait for one and the same holder; 0 does not wait.

        Returns:
            Whether it was taken; it may be held by this very process.

        Raises:
            StorageError: The folder or the file is not ours.
        """
        if self._folder is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._folder.make(self._path.parent)
        since, pause, before = time.monotonic(), PACE[0], ""
        while not self._take():
            if (holder := self.holder()) != before:
                since, before = time.monotonic(), holder
            if time.monotonic() - since >= limit:
                return False
            time.sleep(pause)
            pause = min(2 * pause, PACE[1])
        return True

    def _take(self) -> bool:
        """Take the lock if it is free."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._same(descriptor):  # it was replaced in between: the lock is on the other one
                return self._take()
            with suppress(OSError):  # a full disk
                said = this_process().encode()
                os.truncate(descriptor, os.pwrite(descriptor, said, 0))
            self._descriptor, descriptor = descriptor, -1
        except BlockingIOError:
            return False
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        return True

    def _open(self) -> int:
        flags = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
        if self._folder is None:
            return os.open(self._path, flags, 0o666)
        try:
            descriptor = os.open(self._path, flags, 0o600)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise StorageError(f"{self._path} is a symbolic link where a lock file belongs; remove it") from None
            raise
        self._folder.settle(descriptor)
        return descriptor

    def holder(self) -> str:
        """Return who holds the lock, or held it last: `process 12 on host`."""
        with suppress(OSError), self._path.open("rb") as file:
            if found := HOLDER.match(file.read(300)):
                return found[0].decode()
        return "another process"

    def held(self) -> bool:
        """Return whether the lock is held, and its file still the one that others would lock."""
        return self._descriptor is not None and self._same(self._descriptor)

    def is_held(self) -> bool:
        """Return whether anybody holds the lock; several may ask at once."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # also for a child between its fork and its exec
            self.let_go()

    def remove(self) -> None:
        """Delete the file, whose name nobody else has, and give the lock back."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            self.release()

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

    def __enter__(self) -> FileLock:
        """Wait for the lock, if it is not held already."""
        if self._descriptor is None:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self.release()


_every: WeakSet[FileLock] = WeakSet()


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
