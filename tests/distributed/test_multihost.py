"""Which processes belong to a job: precedence of the settings and the check of their number."""

import pytest

from jwm_jax.distributed import HostConfig, initialize
from jwm_jax.distributed.multihost import detected_cluster
from jwm_jax.errors import UsageError


def test_a_process_alone_says_so_and_refuses_when_more_were_expected(monkeypatch):
    assert initialize().startswith("process 0 of 1 (alone)")
    monkeypatch.setenv("JWM_EXPECTED_PROCESSES", "4")
    with pytest.raises(UsageError, match="4 processes were expected, but this job has 1"):
        initialize()


def test_half_a_setting_is_an_error(monkeypatch):
    with pytest.raises(UsageError, match="must all be set"):
        initialize(HostConfig(coordinator="127.0.0.1:1"))
    monkeypatch.setenv("JWM_PROCESS_ID", "one")
    with pytest.raises(UsageError, match="JWM_PROCESS_ID must be a whole number, got 'one'"):
        initialize()


def test_explicit_settings_come_before_the_environment(monkeypatch):
    monkeypatch.setenv("JWM_COORDINATOR", "127.0.0.1:9")
    monkeypatch.setenv("JWM_NUM_PROCESSES", "7")
    monkeypatch.setenv("JWM_PROCESS_ID", "3")
    line = initialize(HostConfig(coordinator="127.0.0.1:5", num_processes=1, process_id=0))
    assert "coordinator 127.0.0.1:5" in line


def test_clusters_are_detected_only_with_several_processes(monkeypatch):
    assert detected_cluster() is None
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert detected_cluster() is None
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert detected_cluster() == "slurm"
