"""What in a folder does not count."""

import os
from pathlib import Path

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
