"""`jwm VERB ...`: finds the verb, parses its flags, and turns errors into messages and exit codes.

A verb is a module of this folder with a frozen dataclass, whose fields are the flags and whose
docstring is the help, and a function that takes it and returns an exit code or None. Nothing heavy
is imported at the top of such a module, so that `--help` is instant. README.md says how to add one.

Exit codes: 0 done, 1 failure, 2 usage, 3 bad data, 4 resources, 75 preempted and saved,
130 interrupted.
"""

import difflib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jwm_jax.cli.backend import missing_backend
from jwm_jax.errors import JwmError, ResourceError, UsageError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class Verb(NamedTuple):
    """Where a verb lives.

    Attributes:
        module: Below `jwm_jax.cli`.
        options: Name of its dataclass of flags.
        function: Name of the function that does it.
        summary: One line for `jwm --help`.
    """

    module: str
    options: str
    function: str
    summary: str


VERBS = {
    "demo": Verb("demo", "Options", "run", "a drive in; scene, future and report out"),
    "reconstruct": Verb("reconstruct", "Options", "run", "a drive in, 3D Gaussians out"),
    "generate": Verb("generate", "Options", "run", "the future of a drive, as video"),
    "evaluate": Verb("evaluate", "Options", "run", "scores under a named protocol"),
    "train": Verb("train", "Options", "run", "train a model from a config"),
    "data make": Verb("data", "MakeOptions", "make", "build a data set of procedural streets"),
    "data check": Verb(
        "data", "CheckOptions", "check", "draw a drive and say what is wrong with it"
    ),
    "checkpoint list": Verb("checkpoint", "ListOptions", "list_steps", "the steps a run has saved"),
    "checkpoint verify": Verb(
        "checkpoint", "VerifyOptions", "verify", "whether they are as they were saved"
    ),
    "checkpoint diff": Verb(
        "checkpoint", "DiffOptions", "diff", "the arrays in which two of them differ"
    ),
    "export": Verb("export", "Options", "run", "weights in formats that others read"),
    "benchmark": Verb("benchmark", "Options", "run", "how fast an operation runs here"),
    "doctor": Verb("doctor", "Options", "run", "what this machine has and what it lacks"),
}

_HEADER = """usage: jwm VERB [options]

A joint world model for driving: reconstruct a drive, generate its future.
"""

_FOOTER = """
`jwm VERB --help` tells more. Drives are named FORMAT:WHERE, such as kitti:PATH, nuscenes:PATH,
folder:PATH, dataset:PATH or procedural:easy:SEED.

Example:
  jwm demo --clip procedural:easy:0
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Words after `jwm`; those of the process by default.

    Returns:
        The exit code. Unknown flags and `--help` leave through SystemExit, as tyro does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    verbose = "--verbose" in words
    _escape_what_the_terminal_lacks()
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        print("\njwm: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if verbose:
            raise
        message, code = explain(error)
        print(f"jwm: {message}", file=sys.stderr)
        return code


def explain(error: Exception) -> tuple[str, int]:
    """The message and exit code of a failure."""
    if isinstance(error, JwmError):
        return str(error), error.exit_code
    backend = missing_backend()
    if backend is not None:
        return backend, ResourceError.exit_code
    if _is_lack_of_resources(error):
        return (
            f"out of memory or disk space: {_first_line(error)}. Use fewer frames, a smaller size, "
            "or another disk.",
            ResourceError.exit_code,
        )
    return (
        f"failed with {type(error).__name__}: {_first_line(error)}. "
        "Run the same command with --verbose for the traceback.",
        1,
    )


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        from jwm_jax import __version__

        print(f"jwm_jax {__version__}")
        return 0
    name, rest = _find_verb(words)
    if name is None:
        print(_help(prefix=words[0]))
        return 0
    verb = VERBS[name]
    module = importlib.import_module(f"jwm_jax.cli.{verb.module}")
    import tyro

    options = tyro.cli(
        getattr(module, verb.options),
        args=rest,
        prog=f"jwm {name}",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    _cache_compilations()
    return int(getattr(module, verb.function)(options) or 0)


def _find_verb(words: list[str]) -> tuple[str | None, list[str]]:
    """The verb and the words after it; None where help on a family of verbs is wanted."""
    first = words[0]
    if first in VERBS:
        return first, words[1:]
    family = [name.split()[1] for name in VERBS if name.startswith(f"{first} ")]
    if family:
        if len(words) == 1 or words[1] in ("-h", "--help"):
            return None, []
        if words[1] in family:
            return f"{first} {words[1]}", words[2:]
        raise UsageError(_unknown(f"{first} {words[1]}", [f"{first} {f}" for f in family]))
    raise UsageError(_unknown(first, sorted({name.split()[0] for name in VERBS})))


def _unknown(got: str, known: list[str]) -> str:
    close = difflib.get_close_matches(got, known, n=1)
    hint = f" Did you mean `jwm {close[0]}`?" if close else f" Known: {', '.join(known)}."
    return f"unknown verb {got!r}.{hint}"


def _help(prefix: str = "") -> str:
    chosen = {n: v for n, v in VERBS.items() if n.split()[0] == prefix or not prefix}
    lines = [f"  {name:<17} {verb.summary}" for name, verb in chosen.items()]
    return "\n".join([_HEADER, "verbs:", *lines, _FOOTER.rstrip()])


def _escape_what_the_terminal_lacks():
    """A name that the output's encoding lacks is written with escapes; it is no reason to fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _cache_compilations():
    """Let JAX keep compiled programs in the user's cache folder: a second run starts fast.

    Where there is no such folder, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = _cache_folder()
        if folder is None:
            return
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _cache_folder() -> Path | None:
    """The user's cache folder of this package; None if there is none or it cannot be written to."""
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "jwm_jax" / "xla"
        if not root.is_absolute():
            return None
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):
        return None
    return folder if os.access(folder, os.W_OK) else None


def _is_lack_of_resources(error: Exception) -> bool:
    lacking = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE)
    full = isinstance(error, OSError) and error.errno in lacking
    return full or isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else "no message"


if __name__ == "__main__":
    sys.exit(main())
