"""What runs on a GPU one day must run today: the benchmark on a model of a few kilobytes, the tests on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from repo.repository import ROOT


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=known, capture_output=True, text=True, check=False, timeout=280
    )


def test_the_benchmark_runs_whole() -> None:
    pytest.importorskip("transformers")
    done = run("benchmarks/gpu.py", "--tiny")
    assert done.returncode == 0, done.stderr[-3000:]
    cases = {case["name"]: case for case in json.loads(done.stdout.splitlines()[-1])["cases"]}
    assert len(cases) == 13
    assert all(case["ours"]["median"] > 0 for case in cases.values())
    assert cases["3 tokens after 24, batch 2"]["facts"]["tokens_per_second"] > 0


def test_without_a_gpu_the_benchmark_says_so() -> None:
    done = run("benchmarks/gpu.py", "--no-peer")
    assert done.returncode == 2
    assert "there is no CUDA device; --tiny tests this script without one" in done.stderr


def test_the_tests_are_collected_and_skipped() -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:timeout", "-rs", "tests/gpu")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" not in done.stdout
    assert "no CUDA device: torch.cuda.is_available() is False" in done.stdout


def test_the_tests_are_rehearsed() -> None:
    few = "of_the_cpu or arrives or map or turn or embedded"
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gpu", "-k", few, IDEFICS_REHEARSE="1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
