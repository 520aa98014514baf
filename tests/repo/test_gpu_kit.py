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
    assert len(cases) == 15
    assert all(case["ours"]["median"] > 0 for case in cases.values())
    facts = cases["3 tokens after 24, batch 2"]["facts"]
    assert facts["tokens_per_second"] > 0
    assert facts["peer_left_out"] == {}, "one of the peer's settings failed"
    assert len(facts["peer_seconds"]) == 2


def test_without_a_gpu_the_benchmark_says_so() -> None:
    done = run("benchmarks/gpu.py", "--no-peer")
    assert done.returncode == 2
    assert "there is no CUDA device; --tiny tests this script without one" in done.stderr


def test_the_tests_are_collected_and_skipped() -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:timeout", "-rs", "tests/gpu")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" not in done.stdout
    assert "no CUDA device: torch.cuda.is_available() is False" in done.stdout


def without(*missing: str) -> str:
    """A program's first lines, after which these modules are not installed."""
    return f"import pytest, runpy, sys; sys.modules.update(dict.fromkeys({missing})); "


def test_the_machine_may_lack_pillow() -> None:
    done = run("-c", without("PIL") + "sys.exit(pytest.main(['--co', '-q', '-p', 'no:cacheprovider', 'tests/gpu']))")
    assert done.returncode == 0, done.stdout[-3000:]
    program = "sys.argv[1:] = ['--no-peer']; runpy.run_path('benchmarks/gpu.py', run_name='__main__')"
    done = run("-c", without("PIL", "transformers") + "sys.path.insert(0, 'benchmarks'); " + program)
    assert "there is no CUDA device" in done.stderr, done.stderr[-3000:]


def test_the_tests_are_rehearsed() -> None:
    few = "of_the_cpu or arrives or map or turn or embedded"
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gpu", "-k", few, IDEFICS_REHEARSE="1")
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
