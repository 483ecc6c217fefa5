"""Joining the processes of one job.

Precedence: explicit arguments, then JWM_COORDINATOR / JWM_NUM_PROCESSES / JWM_PROCESS_ID, then a
cluster that JAX detects itself (SLURM, Open MPI, a TPU pod), then a single process. The commonest
failure of a cluster job is that every process believes to be alone, so the number of processes is
compared with the expected one and a difference is an error.
"""

import os
from dataclasses import dataclass

import jax

from jwm_jax.errors import UsageError


@dataclass(frozen=True)
class HostConfig:
    """Where the other processes are; everything None means: look at the environment.

    Attributes:
        coordinator: `host:port` of process 0.
        num_processes: Processes of the job.
        process_id: Index of this process.
        expected_processes: Fail unless the job ends up with this many.
        heartbeat_seconds: When a process has been silent for so long, the others end too; 100 if
            not said.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    expected_processes: int | None = None
    heartbeat_seconds: int | None = None


def _environment(config: HostConfig) -> HostConfig:
    def number(name: str) -> int | None:
        text = os.environ.get(name)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{name} must be a whole number, got {text!r}.") from None

    def first(given: int | None, name: str) -> int | None:
        return number(name) if given is None else given

    return HostConfig(
        coordinator=config.coordinator or os.environ.get("JWM_COORDINATOR"),
        num_processes=first(config.num_processes, "JWM_NUM_PROCESSES"),
        process_id=first(config.process_id, "JWM_PROCESS_ID"),
        expected_processes=first(config.expected_processes, "JWM_EXPECTED_PROCESSES"),
        heartbeat_seconds=first(config.heartbeat_seconds, "JWM_HEARTBEAT_SECONDS") or 100,
    )


def detected_cluster() -> str | None:
    """Name of a cluster launcher with several processes around this one, or None.

    Returns:
        "slurm", "openmpi" or "tpu-pod", whose settings JAX reads itself.
    """
    env = os.environ
    if env.get("SLURM_PROCID") is not None and int(env.get("SLURM_NTASKS", "1")) > 1:
        return "slurm"
    if int(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "openmpi"
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return "tpu-pod"
    return None


def initialize(config: HostConfig | None = None) -> str:
    """Join the job; call it once, before JAX touches any backend.

    Args:
        config: Explicit settings; missing ones come from the environment.

    Returns:
        One line that says what was decided, to print.

    Raises:
        UsageError: When the settings are incomplete or the processes are not the expected number.
    """
    config = _environment(config or HostConfig())
    silence = {"heartbeat_timeout_seconds": config.heartbeat_seconds}
    explicit = (config.coordinator, config.num_processes, config.process_id)
    if any(value is not None for value in explicit):
        if any(value is None for value in explicit):
            raise UsageError(
                "coordinator, num_processes and process_id (or JWM_COORDINATOR, "
                "JWM_NUM_PROCESSES, JWM_PROCESS_ID) must all be set, got "
                f"{config.coordinator}, {config.num_processes}, {config.process_id}."
            )
        how = f"coordinator {config.coordinator}"
        expected = config.expected_processes or config.num_processes
        if config.num_processes > 1:
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
            jax.distributed.initialize(*explicit, **silence)
    elif (cluster := detected_cluster()) is not None:
        how, expected = cluster, config.expected_processes
        if expected is None and cluster == "slurm":
            expected = int(os.environ["SLURM_NTASKS"])
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(**silence)
    else:
        how, expected = "alone", config.expected_processes
    count = jax.process_count()
    if expected is not None and count != expected:
        raise UsageError(
            f"{expected} processes were expected, but this job has {count}; check the coordinator "
            "address and that every process was started with the same settings."
        )
    return (
        f"process {jax.process_index()} of {count} ({how}), "
        f"{len(jax.local_devices())} of {len(jax.devices())} {jax.default_backend()} devices"
    )
