"""What is loaded by what, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SERVER = ("fastapi", "starlette", "uvicorn", "prometheus_client", "llguidance")
HEAVY = ("torch", "numpy", "PIL", "tokenizers", "safetensors", "huggingface_hub", "httpx", "jinja2", "transformers", *SERVER)


def _loaded(code: str) -> list[str]:
    """Top-level modules that are loaded after `code` ran in a new process."""
    report = "import json, sys; print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True)
    names: list[str] = json.loads(done.stdout.splitlines()[-1])
    assert "idefics" in names
    return names


def _command_line(*arguments: str) -> str:
    return (
        f"import idefics.cli\ntry:\n    idefics.cli.main({list(arguments)})\nexcept SystemExit as end:\n    assert not end.code"
    )


def test_import_idefics_loads_nothing_heavy() -> None:
    assert not set(HEAVY) & set(_loaded("import idefics; idefics.__version__; dir(idefics)"))


def test_names_are_loaded_when_used() -> None:
    names = _loaded("import idefics; idefics.IdeficsError, idefics.SamplingParams")
    assert not set(HEAVY) & set(names)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_the_command_lines_help_loads_no_torch(arguments: list[str]) -> None:
    assert not {"torch", "numpy", "PIL", "transformers", *SERVER} & set(_loaded(_command_line(*arguments)))


def test_an_answer_of_the_command_loads_nothing_that_it_does_not_need() -> None:
    """Each of these takes longer to import than the embedded model takes to answer."""
    names = _loaded(_command_line("generate", "What is this?", "--max-new-tokens", "2"))
    assert "torch" in names
    assert not {"sympy", "mpmath", "huggingface_hub", "httpx", *SERVER} & set(names)


def test_the_facade_never_loads_transformers() -> None:
    names = _loaded("import idefics.api, idefics.hf, idefics.selftest")
    assert "torch" in names, "this test sees what is loaded"
    assert not {"transformers", "peft", "accelerate", "sentencepiece", "mistral_common", *SERVER} & set(names)


def test_the_help_of_serving_loads_no_server() -> None:
    assert not {"torch", *SERVER} & set(_loaded(_command_line("serve", "--help")))


@pytest.mark.parametrize("module", ["sampling_params", "request"])
def test_the_engines_plain_parts_need_no_torch(module: str) -> None:
    assert "torch" not in _loaded(f"import idefics.engine.{module}")


def test_fewshot_needs_no_import_of_its_own() -> None:
    script = (
        "import idefics, sys; assert 'torch' not in sys.modules; assert idefics.fewshot.ORDERS and 'fewshot' in dir(idefics)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_answers_are_scored_again_without_torch() -> None:
    names = _loaded("import idefics.evaluation.records, idefics.evaluation.scores, idefics.evaluation.tasks.drawings")
    assert not {"torch", "tokenizers"} & set(names)
