"""Records of a data set that lost something say so; none is read as if it were whole."""

from dataclasses import replace

import numpy as np
import pytest
from plain_clips import plain_clip

from jwm_jax.data.records import FIELDS, decode_clip, encode_clip, read_header
from jwm_jax.errors import DataError


@pytest.fixture(scope="module")
def record():
    clip = plain_clip(frames=3)
    return encode_clip(
        replace(clip, depth=tuple(np.ones(clip.view(v).shape[:3], "f4") for v in range(2)))
    )


@pytest.mark.parametrize("field", [*FIELDS, "header"])
def test_an_array_that_is_missing_or_cut_is_noticed(record, field):
    for broken in ({}, {field: record[field][:-1]}, {field: np.array(["text"])}):
        with pytest.raises(DataError, match=r"record plain: |no record of a clip"):
            decode_clip({k: v for k, v in record.items() if k != field} | broken)


@pytest.mark.parametrize("field", ["images", "depth", "lidar"])
def test_bytes_that_changed_are_noticed(record, field):
    zeros = np.zeros_like(record[field])
    with pytest.raises(DataError, match=r"record plain: (picture|depth|lidar) of frame 0"):
        decode_clip(record | {field: zeros})


def test_pictures_of_another_size_than_recorded(record):
    sizes = record["image_sizes"].copy()
    sizes[1, 0] += 1
    with pytest.raises(DataError, match="picture of frame 0 of view view1 is not of its view's"):
        decode_clip(record | {"image_sizes": sizes})


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"name": "a"}', b"\xff"])
def test_a_header_of_something_else(record, text):
    with pytest.raises(DataError, match="no record of a clip"):
        read_header(record | {"header": np.frombuffer(text, np.uint8)})
