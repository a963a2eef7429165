"""A lock on a file, held in the kernel: free as soon as its owner dies, still held while its owner is stopped."""

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

MOUNTS = Path("/proc/self/mountinfo")  # only on Linux; without it, no file system is refused

# File systems where flock may not work between machines, or at all, and where SQLite's shared memory never works.
NETWORK = re.compile(
    r"(nfs|cifs|smb|lustre|ceph|glusterfs|gpfs|beegfs|fhgfs|panfs|wekafs|afs|orangefs|pvfs|ocfs|gfs2|ncpfs"
    r"|fuse\.(sshfs|glusterfs|ceph|s3fs|gcsfuse|rclone|juicefs|cephfs|smbnetfs|davfs|goofys|blobfuse|mount-s3)).*"
)


FIRST_PAUSE, LONGEST_PAUSE = 0.0002, 0.02  # seconds between two attempts to take a lock

HOLDER = re.compile(rb"process \d+ on [\w.-]+")


def this_process() -> str:
    """Return the name of this process in lock files: `process 12 on host`."""
    return f"process {os.getpid()} on {socket.gethostname()}"


class LockFolder:
    """The folder of a storage's lock files, beside its file. A user that can open a lock file can block a study.

    Only the database's owner can open the folder or, if the database's group may write to it, that group. If root makes
    the folder, it gives it to the database's owner, as SQLite does with its own files.

    Args:
        file: The storage's file, which need not exist.

    Raises:
        StorageError: It would be on a network file system.
    """

    def __init__(self, file: str | Path) -> None:
        refuse_network(Path(file))
        self.database = Path(file).resolve()  # the same in every working folder
        self.path = self.database.with_name(f"{self.database.name}.locks")

    def lock(self, *names: str) -> FileLock:
        """Return a lock on a file of the folder; the file is made when the lock is taken."""
        return FileLock(self.path.joinpath(*names), self)

    def make(self, inner: Path) -> None:
        """Make the folder, and one inside it, or check that no other user can open what is in it.

        Raises:
            StorageError: It is a link, belongs to another user, or everybody can write in it.
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
        self.set_access(self.path)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            self._refuse("is closed to this user")
        if inner != self.path:
            with suppress(FileExistsError):
                inner.mkdir(0o700)
            self.set_access(inner)

    def set_access(self, target: Path | int) -> None:
        """Set the owner, group and mode of a folder or an open file, if this process runs as its owner or as root."""
        mode, uid, gid = self._access()
        found = os.stat(target)
        if os.geteuid() not in (0, found.st_uid):
            return
        mode = mode if stat.S_ISDIR(found.st_mode) else mode & 0o660
        uid = uid if os.geteuid() == 0 else found.st_uid
        if (found.st_uid, found.st_gid) != (uid, found.st_gid if gid is None else gid):
            os.chown(target, uid, -1 if gid is None else gid)
        if stat.S_IMODE(os.stat(target).st_mode) != mode:
            os.chmod(target, mode)

    def _access(self) -> tuple[int, int, int | None]:
        """Return the mode and owner of the folder, and its group if it is shared with one."""
        try:
            file = os.stat(self.database)
        except FileNotFoundError:
            return 0o700, os.geteuid(), None
        return (0o2770, file.st_uid, file.st_gid) if file.st_mode & stat.S_IWGRP else (0o700, file.st_uid, None)

    def _refuse(self, problem: str) -> NoReturn:
        raise StorageError(
            f"{self.path} has the locks of {self.database.name} and {problem}. Locks that others can open could "
            "block its studies. While none of them runs, remove the folder, or share it with the group of the database "
            f"(chmod g+w {self.database.name}), and run the same command again"
        )


class FileLock:
    """A lock on a file, held by this process and not by its forked children; the file stays after a release.

    The package `filelock` polls every 50 ms, too slow for the records of a journal, and does not notice that its file
    has been replaced.

    Args:
        path: The file.
        folder: Makes the folder of the file, and closes it to other users; if None, everybody may lock the file.
    """

    def __init__(self, path: Path, folder: LockFolder | None = None) -> None:
        self._path, self._folder = path, folder
        self._descriptor: int | None = None
        _locks.add(self)

    def acquire(self, *, limit: float = math.inf) -> bool:
        """Take the lock, and write the name of this process into the file.

        Args:
            limit: Seconds to wait for one and the same holder; 0 means no waiting.

        Returns:
            Whether it was taken. It is not if another object of this process holds it.

        Raises:
            StorageError: The folder or the file is not one that this user may use.
        """
        if self._folder is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._folder.make(self._path.parent)
        since, pause, before = time.monotonic(), FIRST_PAUSE, ""
        while not self._take():
            if (holder := self.holder()) != before:
                since, before = time.monotonic(), holder
            if time.monotonic() - since >= limit:
                return False
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return True

    def _take(self) -> bool:
        """Take the lock if it is free."""
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._same(descriptor):  # the file was replaced in between: lock the new one
                return self._take()
            with suppress(OSError):  # a full disk
                os.truncate(descriptor, os.pwrite(descriptor, this_process().encode(), 0))
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
        self._folder.set_access(descriptor)
        return descriptor

    def holder(self) -> str:
        """Return the process that holds the lock, or held it last: `process 12 on host`."""
        with suppress(OSError), self._path.open("rb") as file:
            if found := HOLDER.match(file.read(300)):
                return found[0].decode()
        return "another process"

    def held(self) -> bool:
        """Return whether this object holds the lock, on the file that others would lock."""
        return self._descriptor is not None and self._same(self._descriptor)

    def is_held(self) -> bool:
        """Return whether any process holds the lock; several processes may call this at once."""
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
        """Release the lock; nothing happens if it is not held."""
        if self._descriptor is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # a child between its fork and its exec has the descriptor too
            self.close()

    def remove(self) -> None:
        """Delete the file and release the lock; only for a file whose name no other process locks."""
        if self._descriptor is not None:
            self._path.unlink(missing_ok=True)
            self.release()

    def close(self) -> None:
        """Close the file. The lock is free then, unless another process has inherited the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _same(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except OSError:
            return False

    def __enter__(self) -> FileLock:
        """Wait for the lock, unless this object holds it already."""
        if self._descriptor is None:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.release()


_locks: WeakSet[FileLock] = WeakSet()


def _close_in_child() -> None:
    """Close what a forked child inherits: it would hold its parent's locks after the parent's death."""
    for lock in _locks:
        lock.close()


os.register_at_fork(after_in_child=_close_in_child)


def refuse_network(path: Path) -> None:
    """Refuse a path on a network file system.

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
        if place.is_relative_to(mounted) and len(mounted.parts) >= len(
            found[0].parts
        ):  # the last of equals is mounted on top
            found = mounted, right.split()[0]
    if NETWORK.fullmatch(found[1]):
        raise StorageError(
            f"{path} is on a network file system ({found[1]}, mounted at {found[0]}), where file locks are not to be "
            "relied on. Choose a place on a disk of this machine, or PostgreSQL: --storage postgresql://user@host/database"
        )
