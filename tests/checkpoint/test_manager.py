"""Checkpoints: whole or not at all, detected when damaged, pruned only behind a good one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.checkpoint.manager import MANIFEST, CheckpointManager, verify_step
from jwm_jax.checkpoint.warm_start import warm_start
from jwm_jax.errors import DataError, ResourceError


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


def test_warm_start_copies_by_name_and_refuses_silence():
    params = {"new": {"w": np.zeros((2, 2))}, "head": np.zeros(3)}
    source = {"old": {"w": np.ones((2, 2))}, "head": np.ones(3)}
    result, report = warm_start(params, source, renamed={"new.": "old."})
    assert result["new"]["w"].all() and result["head"].all()
    assert report.copied == ("new.w", "head") and not report.kept
    with pytest.raises(DataError, match=r"new.w is missing in the source"):
        warm_start(params, source)
    partial, report = warm_start(params, source, partial=True)
    assert not partial["new"]["w"].any() and report.unused == ("old.w",)
    with pytest.raises(DataError, match=r"head has shape \(3,\) here but \(4,\)"):
        warm_start(params, {**source, "head": np.ones(4)}, partial=True)
