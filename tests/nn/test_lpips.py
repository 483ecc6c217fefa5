"""LPIPS against the original's values and gradients, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jwm_jax.errors import DataError
from jwm_jax.nn.lpips import load_lpips, lpips


@pytest.fixture(scope="module")
def golden(jwm_data):
    folder = jwm_data / "weights_lpips"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    with np.load(folder / "lpips_golden.npz") as arrays:
        return load_lpips(folder / "lpips_alexnet.safetensors"), dict(arrays)


def pair(arrays):
    return (arrays[name].astype(np.float32) / 255.0 for name in ("a_u8", "b_u8"))


@pytest.mark.golden
def test_values_and_gradient_are_the_originals(golden):
    params, arrays = golden
    x, y = pair(arrays)
    np.testing.assert_allclose(lpips(params, x, y), arrays["alexnet_lpips"], rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda y: lpips(params, x[0], y)))(y[0])
    expected = 2.0 * arrays["alexnet_grad_b_img0"]  # theirs is taken in [-1, 1]
    np.testing.assert_allclose(gradient, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.golden
def test_equal_and_black_pictures_have_no_distance_and_a_finite_gradient(golden):
    params, _ = golden
    black = jnp.zeros((48, 96, 3))
    value, gradient = jax.value_and_grad(lambda y: lpips(params, black, y))(black)
    assert 0.0 <= value < 1e-12
    assert np.isfinite(gradient).all()


def test_a_missing_file_and_one_of_something_else_are_named(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(DataError, match="no such file"):
        load_lpips(tmp_path / "nowhere.safetensors")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"AlexNet_0\|Conv_0\|kernel is missing"):
        load_lpips(tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    with pytest.raises(DataError, match="not a readable"):
        load_lpips(tmp_path / "text.safetensors")


def test_small_pictures_are_refused():
    with pytest.raises(ValueError, match="at least 31"):
        lpips({}, np.zeros((30, 64, 3)), np.zeros((30, 64, 3)))
