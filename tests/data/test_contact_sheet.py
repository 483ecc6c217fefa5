"""The contact sheet shows every view of the chosen instants, with lidar and boxes upon them."""

import numpy as np
from plain_clips import plain_clip

from jwm_jax.data.contact_sheet import annotated, clip_sheet, describe


def test_lidar_and_boxes_change_pixels_and_nothing_else_does():
    clip = plain_clip()
    drawn = annotated(clip, 2, 0)
    assert drawn.shape == clip.view(0)[2].shape and (drawn != clip.view(0)[2]).any()
    bare = plain_clip(lidar=None, tracks=None)
    np.testing.assert_array_equal(annotated(bare, 2, 0), bare.view(0)[2])


def test_one_row_an_instant():
    clip = plain_clip()
    two, four = clip_sheet(clip, 2), clip_sheet(clip, 4)
    assert two.dtype == np.uint8 and two.shape[1] == four.shape[1]
    assert abs(four.shape[0] - 2 * two.shape[0]) <= 0.1 * two.shape[0]


def test_what_a_long_street_had_no_room_for_is_said():
    clip = plain_clip(name="procedural:full:0?frames=600&rate=10")
    assert "left out: 1 thing for which the street had no room" in describe(clip)
    assert "left out" not in " ".join(describe(plain_clip(name="procedural:full:0")))
