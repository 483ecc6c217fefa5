"""I3D equals the logits that its published weights gave elsewhere."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from jwm_jax.errors import DataError
from jwm_jax.nn.i3d import i3d, load_i3d


@pytest.mark.golden
def test_logits_equal_the_golden(jwm_data):
    folder = jwm_data / "weights_i3d"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    golden = np.load(folder / "i3d_golden.npz")
    params = load_i3d(folder / "i3d_kinetics400_f16.safetensors")
    clips = golden["video_u8"].astype(np.float32) / np.float32(255)
    logits = np.asarray(jax.jit(i3d)(params, clips))
    wanted = golden["logits_f16w"]
    np.testing.assert_allclose(logits, wanted, atol=1e-3 * np.abs(wanted).max())
    assert logits[0].argmax() == 103


def test_short_clips_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="9 frames or more, got 8"):
        jax.eval_shape(i3d, {}, jax.ShapeDtypeStruct((1, 8, 224, 224, 3), np.float32))
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"holds no I3D weights: .*Conv3d_1a_7x7.* is missing"):
        load_i3d(tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="there is no such file"):
        load_i3d(tmp_path / "none.safetensors")
