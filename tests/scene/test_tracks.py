"""Box tracks: interpolation, presence, padding."""

import jax
import numpy as np
import pytest

from jwm_jax.scene import Tracks, box_corners, matrix_to_quat, yaw_rotation


def tracks():
    quats = matrix_to_quat(yaw_rotation(np.array([0.0, 0.5, 1.0])))
    return Tracks(
        times=np.array([10.0, 10.5, 11.0]),
        centers=np.array(
            [[[0, 0, 1], [2, 0, 1], [4, 2, 1.0]], [[9, 9, 1], [9, 9, 1], [9, 9, 1.0]]]
        ),
        quats=np.stack([quats, quats]),
        sizes=np.array([[4.5, 1.8, 1.5], [0.6, 0.6, 1.8]]),
        valid=np.array([[True, True, True], [False, True, False]]),
        category=np.array([0, 6], np.int32),
        ids=("a", "b"),
    )


def test_linear_centre_and_slerp_rotation():
    poses, there = tracks().at(10.25)
    np.testing.assert_allclose(poses[0, :3, 3], [1, 0, 1])
    np.testing.assert_allclose(poses[0, :3, :3], yaw_rotation(np.array(0.25)), atol=1e-6)
    assert there.tolist() == [True, True]


def test_a_thing_is_there_only_around_its_annotations():
    assert tracks().at(9.0)[1].tolist() == [True, False]
    assert tracks().at(10.75)[1].tolist() == [True, True]
    assert tracks().at(11.0)[1].tolist() == [True, False]


def test_one_sided_annotation_holds_its_pose():
    moving = tracks()
    poses, _ = moving.at(10.9)
    np.testing.assert_allclose(poses[1, :3, 3], [9, 9, 1])


def test_some_moments_need_few_times():
    whole = tracks()
    for moments, times in (
        ([10.6, 10.9], [10.5, 11.0]),
        ([10.5], [10.0, 10.5]),
        ([9.0], [10.0]),
        ([12.0, 11.5], [11.0]),
        ([10.7, 10.1], [10.0, 10.5, 11.0]),
    ):
        part = whole.around(np.asarray(moments))
        assert part.times.tolist() == times and part.ids == whole.ids
        for time in moments:
            (poses, there), (wanted, known) = part.at(time), whole.at(time)
            np.testing.assert_array_equal(there, known)
            np.testing.assert_array_equal(poses[there], wanted[there])


def test_device_tracks_agree_with_host_and_padding_is_never_there():
    padded = jax.tree.map(jax.numpy.asarray, tracks().on_device(start=10.0, count=4))
    poses, there = jax.jit(lambda t, s: t.at(s))(padded, np.float32(0.25))
    np.testing.assert_allclose(np.asarray(poses)[:2], tracks().at(10.25)[0], atol=1e-5)
    assert np.asarray(there).tolist() == [True, True, False, False]


def test_too_many_things_for_the_padding():
    with pytest.raises(ValueError, match="2 things do not fit into 1"):
        tracks().on_device(start=10.0, count=1)


def test_selection_and_shift():
    chosen = tracks().select(np.array([False, True])).shifted(5.0)
    assert chosen.ids == ("b",) and chosen.times[0] == 15.0


def test_first_four_corners_are_the_front():
    corners = box_corners(np.array([4.0, 2.0, 1.0]))
    assert (corners[:4, 0] == 2.0).all() and (corners[4:, 0] == -2.0).all()
    np.testing.assert_allclose(np.abs(corners), np.tile([2, 1, 0.5], (8, 1)))


def test_names_do_not_make_a_function_compile_again():
    count = []

    @jax.jit
    def poses(t):
        count.append(1)
        return t.at(jax.numpy.float32(0.25))[0]

    named = tracks().on_device(start=10.0)
    other = tracks().select(np.array([1, 0])).on_device(start=10.0)
    assert named.ids != other.ids
    poses(named), poses(other)
    assert len(count) == 1
