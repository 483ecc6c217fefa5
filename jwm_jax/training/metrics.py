"""metrics.jsonl: one JSON object per row, cut back to the restored step when a run resumes."""

import json
import math
from pathlib import Path
from typing import Any

from jwm_jax.files import write_whole


class MetricsWriter:
    """Appends rows to a JSON-lines file.

    Attributes:
        path: The file.
    """

    def __init__(self, path: Path, step: int, enabled: bool = True) -> None:
        """Open the file and drop the rows after `step`, which the resumed run writes again.

        Args:
            path: The file; made when it is missing.
            step: Steps done by the state that training starts from.
            enabled: False on processes that must not write.
        """
        self.path = path
        self._file = None
        if not enabled:
            return
        if path.is_file():
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if 0 <= _step_of(line) <= step]
            write_whole(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Append {"step", "kind", **values}; numbers that are not finite become null."""
        if self._file is None:
            return
        row = {"step": step, "kind": kind}
        for name, value in values.items():
            bad = isinstance(value, float) and not math.isfinite(value)
            row[name] = None if bad else value
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return -1


class RunningMean:
    """Mean of scalar metrics since the last row; its state goes into checkpoints."""

    def __init__(self, state: dict[str, list[float]] | None = None) -> None:
        """Start empty, or from the `state` of an earlier one ({name: [sum, count]})."""
        self.state: dict[str, list[float]] = {k: list(v) for k, v in (state or {}).items()}

    def add(self, metrics: dict[str, float]) -> None:
        """Add one step; values that are not finite are left out of the mean."""
        for name, value in metrics.items():
            if math.isfinite(value):
                total = self.state.setdefault(name, [0.0, 0.0])
                total[0] += value
                total[1] += 1

    def take(self) -> dict[str, float]:
        """The means so far; starts again from nothing."""
        means = {name: total / count for name, (total, count) in self.state.items()}
        self.state = {}
        return means
