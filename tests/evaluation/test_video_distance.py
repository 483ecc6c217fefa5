"""Distances between sets of clips against their definitions."""

import itertools

import numpy as np
import pytest
import scipy.linalg

from jwm_jax.errors import UsageError
from jwm_jax.evaluation import video_distance
from jwm_jax.evaluation.video_distance import (
    Distance,
    frechet_distance,
    kernel_distance,
    with_interval,
)

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(("count", "width"), [(60, 5), (12, 30)])
def test_frechet_is_its_formula_also_with_fewer_clips_than_features(count, width):
    a = RANDOM.normal(size=(count, width)) @ RANDOM.normal(size=(width, width))
    b = RANDOM.normal(size=(count + 3, width)) + 0.5
    covariances = [np.cov(x, rowvar=False) for x in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(width)).real
    wanted = ((a.mean(0) - b.mean(0)) ** 2).sum()
    wanted += sum(np.trace(c) for c in covariances) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(wanted, rel=1e-4)
    assert abs(frechet_distance(a, a)) < 1e-9 * np.trace(covariances[0])


def test_kernel_distance_is_its_formula_and_has_no_bias():
    a, b = RANDOM.normal(size=(7, 4)), RANDOM.normal(size=(7, 4)) + 1.0

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    def pairs(x):
        return np.mean([kernel(x[i], x[j]) for i, j in itertools.permutations(range(7), 2)])

    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(pairs(a) + pairs(b) - 2 * across)
    same = [kernel_distance(*RANDOM.normal(size=(2, 20, 4))) for _ in range(100)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 10


def test_an_interval_holds_its_value_and_too_few_clips_are_refused(monkeypatch):
    monkeypatch.setattr(video_distance, "RESAMPLES", 40)
    real = RANDOM.normal(size=(130, 6))
    near, far = real + RANDOM.normal(scale=0.1, size=real.shape), real + 1.0
    results = [with_interval(frechet_distance, x, real) for x in (near, far)]
    for result in results:
        assert isinstance(result, Distance) and result.low < result.value < result.high
    assert results[0].high < results[1].low
    for a, b in ((real[:127], real[:127]), (real, real[:129])):
        with pytest.raises(UsageError, match="at least 128 clips on both sides"):
            with_interval(kernel_distance, a, b)
