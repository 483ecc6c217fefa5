"""Files and folders that appear whole or not at all, and what in a folder does not count.

Everything the package writes goes through here: a file or a folder is written beside its place,
under a name that is litter, and renamed when it is complete. Whoever looks sees the old one or the
new one; where writing fails the old one is intact and nothing partial is left.
"""

import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from jwm_jax.errors import ResourceError, UsageError

LITTER = ("thumbs.db", "desktop.ini", "__macosx", "icon\r")
"""Names, in lower case, that desktops leave beside other people's files; so are all dot files."""


def is_litter(path: str | os.PathLike[str]) -> bool:
    """Whether a file is none of ours: a name of `LITTER` or one with a dot in front.

    `.DS_Store`, `._name`, `.nfs0001`, `.~lock`, folders such as `.Trash-1000`, `Thumbs.db` and
    `desktop.ini`; whatever lies in such a folder is litter too.

    Args:
        path: A name, or a path relative to the folder that is looked at.
    """
    parts = Path(path).parts
    return any(part.startswith(".") or part.lower() in LITTER for part in parts)


def entries(folder: Path) -> list[Path]:
    """What a folder holds, by name, litter left out; nothing where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not is_litter(path.name))


def _beside(path: Path) -> Path:
    """A name in the same folder that nothing else has."""
    return path.with_name(f".jwm-{os.getpid()}-{os.urandom(6).hex()}.tmp")


def _unwritable(path: Path, error: OSError) -> ResourceError:
    return ResourceError(f"{path}: cannot be written ({error.strerror or error}).")


@contextmanager
def write_beside(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Open a file to write; it takes its name when the block ends well.

    A link is followed. What is no regular file, such as /dev/stdout, is written straight.

    Args:
        path: Of the file; its folder has to exist.

    Yields:
        A binary file.

    Raises:
        ResourceError: It cannot be written; an earlier file of that name is as it was.
    """
    named, path = Path(path), Path(os.path.realpath(path))
    straight = path.exists() and not path.is_file()
    temporary = path if straight else _beside(path)
    try:
        with temporary.open("wb") as file:
            yield file
        if not straight:
            if path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            temporary.replace(path)
    except OSError as error:
        raise _unwritable(named, error) from error
    finally:
        if not straight:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_whole(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a file in one step.

    Args:
        path: Of the file; its folder has to exist.
        content: Bytes, or text that is encoded as UTF-8, what that lacks (file names that are no
            text) escaped.

    Returns:
        The path.

    Raises:
        ResourceError: It cannot be written; an earlier file of that name is as it was.
    """
    with write_beside(path) as file:
        file.write(
            content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        )
    return Path(path)


@contextmanager
def folder_beside(folder: Path) -> Iterator[Path]:
    """Make a folder that takes its name when the block ends well.

    Args:
        folder: Absent, or holding nothing but litter.

    Yields:
        An empty folder to fill.

    Raises:
        UsageError: The folder has things in it.
        ResourceError: It cannot be made, or a file in it not written.
    """
    folder = Path(os.path.realpath(folder))
    if entries(folder):
        raise UsageError(f"{folder} is not empty; name a new folder.")
    temporary = _beside(folder)
    with folder_kept_if_used(folder.parent):
        try:
            temporary.mkdir()
            yield temporary
            move_folder(temporary, folder)
        except OSError as error:
            raise _unwritable(folder, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def move_folder(source: Path, folder: Path) -> None:
    """Give a folder its name in one step.

    Args:
        source: On the same file system.
        folder: Absent, or holding nothing but litter, which goes.

    Raises:
        UsageError: The folder has things in it.
        OSError: It cannot be renamed.
    """
    if entries(folder):
        raise UsageError(f"{folder} is not empty; name a new folder.")
    if folder.is_dir():
        for path in folder.iterdir():
            discard(path)
    source.rename(folder)


def discard(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it, also while others make and remove the same ones.

    Returns:
        The folders that this call made, outermost first.

    Raises:
        ResourceError: It cannot be made.
    """
    try:
        return _make_folder(folder)
    except OSError as error:
        raise _cannot_make(folder, error) from error


def _make_folder(folder: Path) -> list[Path]:
    made: list[Path] = []
    for attempt in range(100):
        try:
            if not folder.is_dir():
                if folder.parent != folder:
                    made += [p for p in _make_folder(folder.parent) if p not in made]
                folder.mkdir()
                made.append(folder)
            return made
        except FileExistsError:  # by another's hand, who may have removed it again by now
            if attempt == 99 or folder.is_symlink() or folder.is_file():
                raise
        except FileNotFoundError:
            if attempt == 99:
                raise
    return made


def remove_empty(folders: list[Path]) -> None:
    """Remove those of some folders that are empty, innermost first; outermost stands first."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def folder_kept_if_used(folder: Path) -> Iterator[Path]:
    """A folder that is made for a block, and removed again if the block leaves nothing in it.

    Raises:
        ResourceError: It cannot be made.
    """
    made = make_folder(folder)
    try:
        yield folder
    finally:
        remove_empty(made)


def expand_user(path: str | os.PathLike[str]) -> Path:
    """A path with `~` replaced.

    Raises:
        UsageError: There is no home folder to put there.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{path}: there is no home folder ({error}); write it out.") from None


def check_writable(folder: Path) -> None:
    """Find out, by doing the same beside it, whether a folder can be made and written to.

    Args:
        folder: Need not exist.

    Raises:
        UsageError: It is a file or a broken link, or below one.
        ResourceError: It cannot be made or written to.
    """
    wanted = folder.absolute()
    for above in (wanted, *wanted.parents):
        if os.path.lexists(above) and not os.path.isdir(above):
            below = "" if above == wanted else f", so {folder} cannot be made"
            raise UsageError(
                f"{above} is a file or a broken link{below}; name a folder with --out."
            )
    there = next(path for path in (wanted, *wanted.parents) if os.path.isdir(path))
    probe = _beside(there / "x")
    try:
        (probe / wanted.relative_to(there)).mkdir(parents=True)
    except OSError as error:
        raise _cannot_make(folder, error) from error
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _cannot_make(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{folder}: cannot make or write to this folder ({error.strerror or error}); name another "
        "one."
    )


def numbers(name: str, root: Path) -> list[int]:
    """The numbers of the folders `<root>/<name>-0001`, `-0002`, ..., rising."""
    if not root.is_dir():
        return []
    names = [path.name for path in root.iterdir() if path.name.startswith(f"{name}-")]
    taken = [text.removeprefix(f"{name}-") for text in names]
    return sorted(int(text) for text in taken if text.isdecimal())


def numbered(name: str, number: int, root: Path) -> Path:
    """Folder `<root>/<name>-<number>`, with at least four digits."""
    return root / f"{name}-{number:04d}"


@contextmanager
def numbered_kept_if_used(name: str, root: Path) -> Iterator[Path]:
    """The next free folder `<root>/<name>-0001`, `-0002`, ...; no two callers get the same.

    It is removed again if the block leaves nothing in it.

    Raises:
        ResourceError: It cannot be made.
    """
    try:
        made = _make_numbered(name, root)
    except OSError as error:
        raise _cannot_make(root, error) from error
    try:
        yield made[-1]
    finally:
        remove_empty(made)


def _make_numbered(name: str, root: Path) -> list[Path]:
    """The folders that were made, the numbered one last."""
    made: list[Path] = []
    for attempt in itertools.count(1):
        made += _make_folder(root)
        folder = numbered(name, max(numbers(name, root), default=0) + 1, root)
        try:
            folder.mkdir()
            break
        except (FileExistsError, FileNotFoundError):
            if attempt == 1000:
                raise
    return [*made, folder]
