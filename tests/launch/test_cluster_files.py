"""What is submitted to clusters: consistent, and preempted jobs go back into the queue."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from jwm_jax.distributed.mesh import MESH_AXES
from jwm_jax.training.config import list_configs

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = sorted(p for p in LAUNCH.iterdir() if p.suffix in (".sh", ".sbatch"))


def read(name):
    return yaml.safe_load((LAUNCH / name).read_text())


def check_training(words):
    """A `jwm train` whose config and flags exist."""
    assert words[:2] == ["jwm", "train"] and words[2] in list_configs() and "--out" in words
    for word in words[3:]:
        if word.startswith("--mesh."):
            assert word.removeprefix("--mesh.") in MESH_AXES


def test_a_jobset_has_a_process_for_every_host_of_its_slice():
    jobset = read("jobset.yaml")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = math.prod(int(n) for n in shape.split("x"))
    hosts = chips // container["resources"]["limits"]["google.com/tpu"]
    assert spec["parallelism"] == spec["completions"] == hosts
    command = container["command"]
    check_training(command)
    assert command[command.index("--processes") + 1] == str(hosts * job["replicas"])
    axes = [int(command[i + 1]) for i, w in enumerate(command) if w.startswith("--mesh.")]
    assert math.prod(axes) == chips * job["replicas"]
    assert spec["backoffLimit"] == 0 and jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    assert {v["name"] for v in pod["volumes"]} == set(mounts)
    assert container["workingDir"] == mounts["work"], "a config's paths are relative"
    assert not command[command.index("--out") + 1].startswith("/")
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert 75 not in rule["onExitCodes"]["values"]
    user = re.search(r"--uid (\d+)", (LAUNCH / "Dockerfile").read_text())[1]
    assert pod["securityContext"]["fsGroup"] == int(user)


def test_a_skypilot_task_tells_every_process_its_place():
    task = read("skypilot.yaml")
    for name in ("JWM_COORDINATOR", "JWM_NUM_PROCESSES", "JWM_PROCESS_ID"):
        assert f"export {name}=" in task["run"]
    command = task["run"].splitlines()[-1].split()
    check_training(command)
    gpus = int(task["resources"]["accelerators"].split(":")[1]) * task["num_nodes"]
    axes = [int(command[i + 1]) for i, w in enumerate(command) if w.startswith("--mesh.")]
    assert math.prod(axes) == gpus
    (mount,) = task["volumes"]
    assert f"cd {mount}" in task["run"].splitlines()
    assert not command[command.index("--out") + 1].startswith("/")
    written = task["run"].replace(command[0], "echo").replace(f"cd {mount}", "").splitlines()
    lines = "\n".join([*written, 'echo "$JWM_COORDINATOR $JWM_NUM_PROCESSES $JWM_PROCESS_ID"'])
    env = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2"}
    env = {**os.environ, **env, "SKYPILOT_NODE_RANK": "1"}
    done = subprocess.run(
        ["bash", "-c", lines], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "10.0.0.1:8476 2 1"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_bash_that_parses(script):
    text = script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    if script.name != "stages.sh":
        assert text.startswith("#!/usr/bin/env bash\n") and "set -" in text
    assert not re.search(r"\beval\b|\bsudo\b|rm -rf", text)


def submit(tmp_path, step, *words):
    """slurm.sbatch as SLURM runs it, with commands of ours in the place of srun and scontrol."""
    for name, body in (("srun", step), ("scontrol", 'echo "$@" >> requeued')):
        path = tmp_path / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    place = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "42", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["bash", str(LAUNCH / "slurm.sbatch"), *words]
    return subprocess.Popen(words, env={**os.environ, **place}, cwd=tmp_path)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (3, False), (75, True)])
def test_slurm_queues_again_what_was_preempted(tmp_path, code, requeued):
    job = submit(tmp_path, f'echo "$@" > asked; exit {code}', "jwm", "train", "codec_tiny")
    assert job.wait(30) == code
    asked = (tmp_path / "asked").read_text()
    assert "JWM_EXPECTED_PROCESSES=4" in asked and asked.endswith("jwm train codec_tiny\n")
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 42\n"


def test_slurm_waits_for_processes_that_were_told_to_stop(tmp_path):
    """SLURM tells the step; a signal that reaches the script too changes nothing."""
    step = "trap 'sleep 0.5; exit 75' TERM\necho $$ > ready\nwhile true; do sleep 0.05; done"
    job = submit(tmp_path, step, "jwm", "train", "codec_tiny")
    ready = tmp_path / "ready"
    for _ in range(600):
        if ready.exists() and ready.read_text().strip():
            break
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert job.poll() is None
    os.kill(int(ready.read_text()), signal.SIGTERM)
    assert job.wait(30) == 75 and (tmp_path / "requeued").exists()


def test_slurm_without_a_command_says_how(tmp_path):
    assert submit(tmp_path, "exit 0").wait(30) == 2


def preflight(*words, launcher=()):
    words = [sys.executable, str(LAUNCH / "preflight.py"), *(str(word) for word in words)]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_preflight_says_what_it_found_and_leaves_nothing(tmp_path):
    code, said = preflight("worldgen_tiny", "--out", tmp_path, "--devices", "2", "--megabytes", "1")
    assert code == 0 and said.endswith("ready\n"), said
    assert "sum of 1 MiB over 2 devices" in said and "fits 1 networks" in said
    assert not list(tmp_path.iterdir())


def test_preflight_refuses_what_would_not_run(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for words, expected, text in (
        (["worldgen_tiny", "--out", file / "below"], 4, "cannot write to"),
        (["worldgen_tiny", "--out", tmp_path, "--mesh.data", "3"], 2, "needs 3 devices"),
        (["worldgen_tiny", "--out", tmp_path, "--devices", "3"], 2, "3"),
    ):
        code, said = preflight(*words)
        assert code == expected and text in said and "Traceback" not in said, said


@pytest.mark.multiprocess
def test_preflight_finds_processes_that_differ(tmp_path):
    local = [sys.executable, str(LAUNCH / "local.py"), "--processes", "2", "--devices", "1", "--"]
    code, said = preflight("worldgen_tiny", "--out", tmp_path, "--megabytes", "1", launcher=local)
    assert code == 0 and "all 2 processes write there" in said, said
    script = tmp_path / "odd.sh"
    script.write_text('exec "$@" --batch-size $((4 + 4 * JWM_PROCESS_ID))\n')
    odd = [*local, "bash", str(script)]
    code, said = preflight("worldgen_tiny", "--out", tmp_path, launcher=odd)
    assert code == 2 and "processes [1] have other config than process 0" in said, said
