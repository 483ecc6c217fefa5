"""The rung `photo`: photographs stick to surfaces and fade with distance; signs have boxes."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jwm_jax.data.streets import CLASSES, make_rig, make_street, render
from jwm_jax.data.streets.photo_crops import LABELS, photo_crops
from jwm_jax.data.streets.textures import LEVELS, SIDE, Textures, pyramid, sample
from jwm_jax.errors import DataError
from jwm_jax.scene import Camera, invert_transform, transform_points

HEIGHT, WIDTH = 64, 96


PHOTOS = (("sky", "wall", "road"), ("pavement", "foliage", "sign", "car"))
"""What the bands of two photographs show, from above."""


def level(kind):
    """Mean red of a kind's band."""
    return 60 + 20 * list(LABELS).index(kind) + 25


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Two labelled photographs of checked bands."""
    folder = tmp_path / "real_images" / "camvid_train"
    (folder / "labels").mkdir(parents=True)
    checks = 50 * (np.indices((360, 480)).sum(0) // 4 % 2) - 25
    for number, kinds in enumerate(PHOTOS):
        rows = 360 // len(kinds)
        labels = np.repeat([LABELS[kind][0] for kind in kinds], rows)
        photo = np.repeat([level(kind) for kind in kinds], rows)[:, None] + checks
        rgb = np.stack([photo, photo // 2, photo // 3], -1).clip(0, 255).astype(np.uint8)
        Image.fromarray(rgb).save(folder / f"p{number}.jpg", quality=95)
        label_map = np.repeat(labels[:, None], 480, axis=1).astype(np.uint8)
        Image.fromarray(label_map).save(folder / "labels" / f"p{number}.png")
    monkeypatch.setenv("JWM_DATA", str(tmp_path))
    return folder


def seen(street, times):
    """What the front camera sees, with the lens and the poses."""
    rig = make_rig(("front",), HEIGHT, WIDTH)
    poses = street.world_from_ego(times) @ rig.ego_from_camera[0]
    lens = rig.intrinsics[0]
    return render(street, lens.K, poses, times, width=WIDTH, height=HEIGHT), lens, poses


def test_crops_show_what_their_labels_say(photos):
    crops = photo_crops()
    assert set(crops) == set(LABELS)
    for kind, found in crops.items():
        assert found.shape[1:] == (SIDE, SIDE, 3) and found.dtype == np.uint8
        np.testing.assert_allclose(found[..., 1].mean(), level(kind) / 2, atol=8)


def test_a_photo_street_is_a_function_of_its_seed_and_sticks_to_its_surfaces(photos):
    times = np.array([0.4, 0.7])
    street = make_street(12, "photo")
    picture, lens, poses = seen(street, times)
    again, _, _ = seen(make_street(12, "photo"), times)
    np.testing.assert_array_equal(picture.rgb, again.rgb)
    origin, directions = Camera(lens, poses[0]).rays()
    points = (origin + directions * picture.depth[0][..., None]).reshape(-1, 3)
    uv, depth = Camera(lens, poses[1]).project(points)
    u, v = np.floor(uv).astype(int).T
    ok = (depth > 0.5) & (u >= 0) & (u < WIDTH) & (v >= 0) & (v < HEIGHT)
    still = (picture.instances[0] == 0) & (picture.depth[0] > 0) & (picture.depth[0] < 25)
    ok &= still.reshape(-1)
    ok[ok] &= np.abs(picture.depth[1][v[ok], u[ok]] - depth[ok]) < 0.03 * depth[ok]
    assert ok.sum() > 300
    before = picture.rgb[0].reshape(-1, 3)[ok].astype(float)
    error = np.abs(before - picture.rgb[1][v[ok], u[ok]]).mean()
    shuffled = np.abs(before - np.roll(before, len(before) // 3, axis=0)).mean()
    assert error < 0.4 * shuffled
    textures = street.world.textures
    plain = textures._replace(texels=np.ones_like(textures.texels))
    bare, _, _ = seen(replace(street, world=street.world._replace(textures=plain)), times)
    np.testing.assert_array_equal(bare.depth, picture.depth)
    walls = picture.classes[0] == CLASSES.index("building")
    rough, smooth = (np.abs(np.diff(p.rgb[0].mean(-1)))[walls[:, 1:]] for p in (picture, bare))
    assert rough.mean() > 1.5 * smooth.mean()


def test_a_sign_stands_in_its_box(photos):
    street = make_street(12, "photo")
    signs = [i for i, name in enumerate(street.actor_ids) if name.startswith("sign")]
    assert len(signs) >= 2
    tracks = street.tracks(np.array([0.0, 1.0]))
    np.testing.assert_array_equal(tracks.centers[signs, 0], tracks.centers[signs, 1])
    rig = make_rig(("front",), HEIGHT, WIDTH)
    found = 0
    for sign in signs:
        world_from_box, _ = tracks.at(0.0)
        box = world_from_box[sign]
        ahead = box @ np.asarray([3.0, 0.0, 0.3, 1.0])  # three metres in front of its face
        turn = np.diag([-1.0, -1.0, 1.0, 1.0])  # and looking at it
        pose = np.eye(4)
        pose[:3, :3] = (box @ turn)[:3, :3]
        pose[:3, 3] = ahead[:3]
        ego_from_camera = rig.ego_from_camera[0].copy()
        ego_from_camera[:3, 3] = 0.0
        camera = pose @ ego_from_camera
        lens = rig.intrinsics[0]
        view = render(street, lens.K, camera[None], np.zeros(1), width=WIDTH, height=HEIGHT)
        mine = view.instances[0] == sign + 1
        origin, directions = Camera(lens, camera).rays()
        points = (origin + directions * view.depth[0][..., None])[mine]
        local = transform_points(invert_transform(box), points)
        assert (np.abs(local) <= tracks.sizes[sign] / 2 + 0.03).all()
        found += mine.sum() > 20 and (view.classes[0][mine] == CLASSES.index("pole")).all()
    assert found >= 1


def test_a_texture_is_mirrored_beyond_its_edges_and_fades_to_its_mean():
    crop = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    none = np.zeros(0, np.int32)
    textures = Textures(pyramid(crop)[None], np.ones(1, np.float32), none, none)
    assert textures.texels.shape[1] == sum((SIDE >> level) ** 2 for level in range(LEVELS))
    u = np.asarray([0.3, 1.7, -0.3, 0.3, 0.3], np.float32)
    v = np.asarray([0.6, 0.6, 0.6, 0.6, 0.6], np.float32)
    footprint = np.asarray([1e-4, 1e-4, 1e-4, 4.0, 1e-4], np.float32)
    index = np.asarray([0, 0, 0, 0, -1], np.int32)
    color = np.asarray(sample(textures, index, u, v, footprint))
    np.testing.assert_allclose(color[1:3], color[[0, 0]], rtol=1e-3)
    np.testing.assert_allclose(color[3:], 1.0, atol=1e-4)
    row, column = int(0.4 * SIDE), int(0.3 * SIDE)
    around = (crop[row - 1 : row + 2, column - 1 : column + 2] + 1.0) / (crop.mean((0, 1)) + 1.0)
    assert (color[0] >= around.min((0, 1))).all() and (color[0] <= around.max((0, 1))).all()


def test_without_photographs_the_rung_is_refused(photos, tmp_path, monkeypatch):
    (photos / "labels" / "p1.png").unlink()
    with pytest.raises(DataError, match=r"p1\.jpg and its labels/p1\.png"):
        make_street(1, "photo")
    monkeypatch.setenv("JWM_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="or use the rung full"):
        make_street(1, "photo")
