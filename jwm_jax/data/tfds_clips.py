"""Clips as a TFDS dataset in array_record files, written and read without TensorFlow.

One record is one clip (`records.py`). A dataset folder is a plain TFDS folder: `features.json`,
`dataset_info.json` and `jwm_clips-train.array_record-*`, which any TFDS reader opens.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from jwm_jax.data.records import FIELDS, decode_clip
from jwm_jax.data.specs import split_options, whole_number
from jwm_jax.errors import DataError, UsageError
from jwm_jax.files import expand_user, folder_beside
from jwm_jax.scene import Clip

VERSION_NUMBER = "1.0.0"
"""Version of the record format."""


def _features():
    import tensorflow_datasets as tfds

    # As bytes: TFDS would store float64 in single precision, too coarse for time stamps.
    features = {
        name: tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
        for name, (shape, dtype) in {**FIELDS, "header": ((None,), np.uint8)}.items()
    }
    return tfds.features.FeaturesDict(features)


def write_dataset(folder: Path, splits: Mapping[str, Iterable[tuple[str, dict]]]) -> Path:
    """Write records into a new TFDS folder.

    Args:
      folder: the dataset; its parent must exist, it must not hold a dataset yet.
      splits: for each split its (key, record) pairs; keys are unique, records from `encode_clip`.

    Returns:
      The folder.
    """
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # the class is local to this call

        class JwmClips(tfds.core.GeneratorBasedBuilder):
            """Driving clips of jwm_jax."""

            VERSION = tfds.core.Version(VERSION_NUMBER)
            code_path = None  # no checksums file beside this source to look for

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=_features(),
                    description="Driving clips: pictures, depth, poses, boxes, lane map, lidar.",
                    homepage="",
                )

            def _split_generators(self, dl_manager):
                return {name: iter(records) for name, records in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError("split generators are given as iterators")

    with folder_beside(folder) as part:
        builder = JwmClips(data_dir=str(part / "staging"), file_format="array_record")
        builder.download_and_prepare()
        for path in Path(builder.data_dir).iterdir():
            path.replace(part / path.name)
        shutil.rmtree(part / "staging")
    return folder


class Records(Sequence):
    """Random access to the records of a data set; one that cannot be read is a `DataError`."""

    def __init__(self, source: Sequence, folder: Path) -> None:
        """Read from a TFDS data source of a folder, which messages name."""
        self._source, self._folder = source, folder

    def __len__(self) -> int:
        """Number of clips."""
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One record.

        Raises:
          IndexError: there is no such record.
          DataError: it cannot be read.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        with _naming(self._folder, f"clip {index}"):
            return self._source[int(index) % len(self)]


@contextmanager
def _naming(folder: Path, what: str) -> Iterator[None]:
    """Turns whatever TFDS and array_record raise, of any type, into a sentence about a folder."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(
            f"dataset {folder}: {what} cannot be read ({reason}); copy the folder again or make it "
            "again with `jwm data make`."
        ) from None


def _builder(folder: str | Path):
    """The TFDS builder of a folder, and the folder."""
    import tensorflow_datasets as tfds

    folder = expand_user(folder)
    if not (folder / "dataset_info.json").is_file():
        raise DataError(
            f"dataset {folder}: no dataset_info.json there; expected a folder made by "
            "`jwm data make`."
        )
    with _naming(folder, "its description (dataset_info.json, features.json)"):
        return tfds.builder_from_directory(str(folder)), folder


def open_records(folder: str | Path, split: str = "train") -> Records:
    """Random access to a dataset's records: a sequence with `len` and `[i]`.

    Raises:
      DataError: no dataset there, no such split, or files that cannot be read.
    """
    builder, folder = _builder(folder)
    if split not in builder.info.splits:
        known = tuple(builder.info.splits)
        raise DataError(f"dataset {folder}: no split {split!r}; it has {known}.")
    with _naming(folder, f"split {split}"):
        return Records(builder.as_data_source(split=split), folder)


def splits_of(folder: str | Path) -> dict[str, int]:
    """Number of clips in each split of a dataset folder.

    Raises:
      DataError: no dataset there, or one whose description cannot be read.
    """
    builder, folder = _builder(folder)
    with _naming(folder, "its list of splits"):
        return {name: split.num_examples for name, split in builder.info.splits.items()}


def load_dataset_clip(spec: str) -> Clip:
    """The clip of "dataset:PATH?index=0&split=train".

    Without `split`, the dataset's only split, or train.

    Raises:
      UsageError: an unknown option or an index outside the split.
      DataError: no dataset there, or a broken record.
    """
    name, options = split_options("clip", spec, {"index": whole_number(0), "split": str})
    path, index = name.removeprefix("dataset:"), options.get("index", 0)
    split = options.get("split")
    if not split:
        known = tuple(splits_of(path))
        split = known[0] if len(known) == 1 else "train"
    records = open_records(path, split)
    if index >= len(records):
        raise UsageError(f"clip {spec!r}: split {split} has {len(records)} clips, index {index}.")
    record = records[index]
    try:
        return decode_clip(record)
    except DataError as error:
        raise DataError(f"dataset {path}: {error}") from None
