"""Checkpoints: whole or not at all, detected when damaged, pruned only behind a good one."""

import resource
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.checkpoint.manager import (
    MANIFEST,
    CheckpointManager,
    list_steps,
    verify_step,
    write_manifest,
)
from jwm_jax.errors import DataError, ResourceError
from jwm_jax.files import is_litter


def tree(value):
    return {"a": {"w": jnp.full((4, 3), float(value))}, "n": jnp.int32(value)}


def abstract(t):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), t)


def manager(tmp_path, steps, keep=5):
    m = CheckpointManager(tmp_path / "c", keep)
    for step in steps:
        m.save(step, {"params": tree(step), "ema": None, "opt": ()}, {"step": step})
    m.wait()
    return m


def test_items_and_data_come_back(tmp_path):
    m = manager(tmp_path, [3])
    assert m.newest_verified() == (3, [])
    items = m.restore(3, {"params": abstract(tree(0)), "ema": None, "opt": ()})
    assert items["ema"] is None and items["opt"] == ()
    np.testing.assert_array_equal(np.asarray(items["params"]["a"]["w"]), np.full((4, 3), 3.0))
    assert m.read_data(3) == {"step": 3}


def test_a_save_is_not_disturbed_by_donating_its_arrays(tmp_path):
    m = CheckpointManager(tmp_path / "c")
    bump = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((512, 512))
    m.save(1, {"params": {"x": x}}, {})
    for _ in range(50):
        x = bump(x)
    m.wait()
    back = m.restore(1, {"params": {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32)}})
    assert not np.asarray(back["params"]["x"]).any()


def test_only_the_newest_are_kept(tmp_path):
    m = manager(tmp_path, [1, 2, 3, 4], keep=2)
    assert sorted(p.name for p in m.root.iterdir()) == ["00000003", "00000004"]


def damages(folder):
    """One damage of each kind for every file of a step."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        original = path.read_bytes()
        variants = {"gone": None, "empty": b"", "half": original[: len(original) // 2]}
        if original:
            middle = len(original) // 2
            flipped = bytes([original[middle] ^ 1])
            variants["flipped"] = original[:middle] + flipped + original[middle + 1 :]
        for name, content in variants.items():
            if content != original:
                yield path, original, name, content


def test_every_damage_to_every_file_is_noticed(tmp_path):
    folder = manager(tmp_path, [1]).folder(1)
    assert verify_step(folder) is None
    count = 0
    for path, original, name, content in list(damages(folder)):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)
        reason = verify_step(folder)
        path.write_bytes(original)
        # a flipped bit in the manifest may hit its step number, which is not needed to verify
        if (path.name, name) != (MANIFEST, "flipped"):
            assert reason is not None and path.name in reason, (path, name)
            count += 1
    assert count > 10
    assert verify_step(folder) is None


LITTER = (".DS_Store", "._x", ".nfs0001", "Thumbs.db", "desktop.ini", ".AppleDouble/x")


def test_litter_at_any_depth_neither_condemns_a_step_nor_covers_a_damage(tmp_path):
    m = manager(tmp_path, [1, 2])
    folder = m.folder(2)
    assert not any(is_litter(p.relative_to(folder)) for p in folder.rglob("*"))
    for place in [m.root, folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        for name in LITTER:
            (place / name).parent.mkdir(exist_ok=True)
            (place / name).write_bytes(b"junk")
    again = CheckpointManager(m.root, 1)
    assert again.newest_verified() == (2, [])
    items = again.restore(2, {"params": abstract(tree(0)), "ema": None, "opt": ()})
    np.testing.assert_array_equal(np.asarray(items["params"]["a"]["w"]), np.full((4, 3), 2.0))
    write_manifest(folder, 2, "")  # as of a program that listed what lay there
    (folder / ".DS_Store").unlink()
    assert verify_step(folder) is None
    (folder / "params" / "new").write_bytes(b"")
    assert "new is not in the manifest" in verify_step(folder)
    (folder / "params" / "new").unlink()
    victim = max((p for p in folder.rglob("d/*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[::-1])
    assert verify_step(folder) is not None
    again.save(3, {"params": tree(3)}, {})
    again.wait()
    assert list_steps(m.root) == [3]


def test_walks_back_past_damaged_and_unfinished_steps(tmp_path):
    m = manager(tmp_path, [1, 2, 3])
    (m.folder(3) / MANIFEST).unlink()
    victim = next(p for p in m.folder(2).rglob("*") if p.is_file() and p.name != MANIFEST)
    victim.write_bytes(victim.read_bytes() + b"x")
    step, rejected = m.newest_verified()
    assert step == 1
    assert "not finished" in rejected[0] and victim.name in rejected[1]
    assert (m.root / "00000002.corrupt").is_dir()


def test_the_last_good_step_outlives_an_unfinished_newer_one(tmp_path):
    m = manager(tmp_path, [1], keep=1)
    (m.root / "00000002").mkdir()
    again = manager(tmp_path, [], keep=1)
    again._prune()
    assert again.newest_verified()[0] == 1


def test_a_failed_write_is_raised_by_the_next_call(tmp_path, monkeypatch):
    m = manager(tmp_path, [1])

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jwm_jax.checkpoint.manager.write_manifest", fail)
    m.save(2, {"params": tree(2)}, {})
    with pytest.raises(ResourceError, match="No space left on device"):
        m.wait()
    monkeypatch.undo()
    assert m.newest_verified()[0] == 1
    m.save(3, {"params": tree(3)}, {})
    m.wait()
    assert m.newest_verified()[0] == 3


def test_a_save_without_room_is_told_once_and_leaves_nothing(tmp_path, caplog):
    m = manager(tmp_path, [1])
    big = {"params": {"x": jax.random.normal(jax.random.key(0), (100, 100))}}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    try:
        with pytest.raises(ResourceError, match="File too large") as failed:
            m.save(2, big, {})
            m.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(str(failed.value).splitlines()) == 1
    assert caplog.records == []
    assert sorted(p.name for p in m.root.iterdir()) == ["00000001"]
    m.save(2, big, {})
    m.wait()
    assert m.newest_verified() == (2, [])


def test_restoring_keeps_one_copy_and_needs_no_state_to_begin_with(tmp_path):
    m = CheckpointManager(tmp_path / "c")
    mesh = jax.make_mesh((8,), ("x",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    x = jax.device_put(jnp.arange(800_000.0), split)
    m.save(1, {"params": {"x": x}}, {})
    m.wait()
    want = abstract({"x": x})
    del x
    held = jax.live_arrays()  # kept, so that no other test's array goes while this one counts
    back = m.restore(1, {"params": want})["params"]["x"]
    new = sum(a.nbytes for a in jax.live_arrays()) - sum(a.nbytes for a in held)
    assert new == back.nbytes == 3_200_000
    assert back.sharding == split and np.asarray(back)[-1] == 799_999


def test_another_shape_dtype_or_item_is_an_error(tmp_path):
    m = manager(tmp_path, [1])
    wrong = tree(0)
    wrong["a"]["w"] = jnp.zeros((4, 4))
    with pytest.raises(DataError, match="does not fit"):
        m.restore(1, {"params": abstract(wrong)})
    wrong["a"]["w"] = jnp.zeros((4, 3), jnp.bfloat16)
    with pytest.raises(DataError, match=r"params.a.w was saved as float32, but bfloat16"):
        m.restore(1, {"params": abstract(wrong)})
    with pytest.raises(DataError, match="has no item 'ema'"):
        m.restore(1, {"ema": abstract(tree(0))})
