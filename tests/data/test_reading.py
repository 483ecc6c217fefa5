"""Files as others leave them: marks, litter, numbers in names, arrays that do not fit."""

import numpy as np
import pytest

from jwm_jax.data.files import numbered_files, require_folder
from jwm_jax.errors import DataError
from jwm_jax.files import entries, is_litter
from jwm_jax.reading import natural_order, read_arrays, read_json, read_text, require_shapes


def ordered(tmp_path, *names):
    return [p.name for p in natural_order([tmp_path / name for name in names], tmp_path)]


@pytest.mark.parametrize("name", ["frame_{}.png", "{}.npy", "{:03d}.jpg", "cam2-{}-v1.png"])
def test_names_come_by_their_numbers_whatever_the_zeros(tmp_path, name):
    names = [name.format(i) for i in (0, 2, 9, 10, 98, 100, 1000)]
    rng = np.random.default_rng(0)
    assert ordered(tmp_path, *rng.permutation(names)) == names


def test_fractions_are_ordered_where_they_can_mean_one_thing_only(tmp_path):
    names = ["9.50.png", "10.25.png", "10.75.png"]
    assert ordered(tmp_path, *reversed(names)) == names
    with pytest.raises(DataError, match=r"whether 1.5.png or 1.25.png comes first"):
        ordered(tmp_path, "1.5.png", "1.25.png")


@pytest.mark.parametrize("twins", [("1.png", "01.png"), ("1.png", "1.jpg"), ("1.png", "1.PNG")])
def test_two_files_of_one_number_are_refused(tmp_path, twins):
    with pytest.raises(DataError, match="have the same number"):
        ordered(tmp_path, *twins)


def test_numbered_files_are_one_a_frame_and_the_first_suffix_wins(tmp_path):
    names = ("0007.jpg", "0007.png", "12.PNG", "000000.jpg", "._0003.png", "notes.txt")
    for name in names:
        (tmp_path / name).touch()
    found = numbered_files(tmp_path, (".png", ".jpg"), "images")
    assert {n: p.name for n, p in found.items()} == {0: "000000.jpg", 7: "0007.png", 12: "12.PNG"}
    assert list(found) == [0, 7, 12]
    (tmp_path / "7.png").touch()
    with pytest.raises(DataError, match="are the same frame"):
        numbered_files(tmp_path, (".png", ".jpg"), "images")
    (tmp_path / "7.png").rename(tmp_path / "7 (copy).png")
    with pytest.raises(DataError, match=r"7 \(copy\).png: images are named by their frame"):
        numbered_files(tmp_path, (".png", ".jpg"), "images")


def test_what_desktops_leave_is_nothing(tmp_path):
    for name in (".DS_Store", "._a.png", ".nfs01", "Thumbs.db", "desktop.ini"):
        assert is_litter(name) and is_litter(f"front/{name}")
        (tmp_path / name).touch()
    assert entries(tmp_path) == [] and not is_litter("front/thumbs.png")
    with pytest.raises(DataError, match="is empty"):
        require_folder(tmp_path, "a drive")
    (tmp_path / "a.png").touch()
    assert entries(require_folder(tmp_path, "a drive")) == [tmp_path / "a.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_with_and_without_a_byte_order_mark(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text('{"name": "Straße"}', encoding=encoding)
    assert read_text(path) == '{"name": "Straße"}'
    assert read_json(path) == {"name": "Straße"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b"[" * 100000, "is not valid JSON"),
        (b"\xff\xfe\x00", "cannot be read as text"),
        (b'"\xe4"', "cannot be read as text"),
        (None, "is missing"),
    ],
)
def test_json_that_is_none_is_named(tmp_path, content, message):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.json.*{message}"):
        read_json(path)


SHAPES = {"names": "text v", "K": "v 3 3", "frame": "whole", "seen": "truth v"}


def arrays(**changes):
    whole = {"names": np.array(["a", "b"]), "K": np.ones((2, 3, 3)), "frame": np.int64(3)}
    return whole | {"seen": np.ones(2, bool)} | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"K": np.ones((1, 3, 3))}, r"K has shape \[1, 3, 3\], expected \[2 \(as many as names\)"),
        (
            {"K": np.ones((2, 3))},
            r"K has shape \[2, 3\], expected \[2 \(as many as names\), 3, 3\]",
        ),
        ({"K": np.full((2, 3, 3), "x")}, "K holds <U1, expected numbers"),
        ({"names": np.ones(2)}, "names holds float64, expected text"),
        ({"frame": np.float64(3)}, "frame holds float64, expected whole numbers"),
        ({"frame": np.ones(1, int)}, r"frame has shape \[1\], expected a single value"),
        ({"seen": np.ones(2, int)}, "seen holds int64, expected truth values"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_named(tmp_path, change, message):
    require_shapes(arrays(), SHAPES, "a file")
    np.savez(tmp_path / "a.npz", **arrays(**change))
    with pytest.raises(DataError, match=rf"a\.npz: {message}"):
        read_arrays(tmp_path / "a.npz", SHAPES)


def test_npz_files_that_are_none(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, **arrays())
    content = path.read_bytes()
    for broken in (b"", b"text", content[:-30], content[: len(content) // 2]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
            read_arrays(path, SHAPES)
    np.savez(path, **arrays(K=np.array([{}], object)))
    with pytest.raises(DataError, match=r"a\.npz: cannot be read"):
        read_arrays(path, SHAPES)
    np.savez(path, names=np.array(["a"]))
    with pytest.raises(DataError, match=r"a\.npz: lacks the arrays K, frame, seen"):
        read_arrays(path, SHAPES)
