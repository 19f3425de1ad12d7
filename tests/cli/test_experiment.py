"""`msdask experiment`: from a TOML file to tables, the plan of it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pytorch_lightning")

from msdask.cli.app import main
from tests.tools.experiment_tools import small_config, write_store

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def msdask(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        output = capsys.readouterr()
        return int(left.value.code or 0), output.out, output.err

    return run


def test_an_experiment_is_planned_run_and_gone_on_with(msdask, tmp_path):
    store = write_store(tmp_path)
    config = small_config(Path(store.path).name, Path("out"), models=["features"], baselines=[])
    lines = [f"{name} = {json.dumps(value)}" for name, value in config.items() if name != "recipe"]
    toml = tmp_path / "small.toml"
    toml.write_text("\n".join([*lines, "[recipe]", "epochs = 1", 'accelerator = "cpu"']), encoding="utf-8")
    code, printed, said = msdask("experiment", toml, "--plan")
    assert code == 0, said
    assert "1 models on 2 splits: 2 runs" in printed
    assert not (tmp_path / "out").exists()
    code, printed, said = msdask("experiment", toml)
    assert code == 0, said
    assert "2/2 features-10x-5x-n+1, split 1: done: kappa " in printed
    assert "| combine features | 5x/10x | n + 1 | " in printed
    code, printed, said = msdask("experiment", toml, "--ablate", 1)
    assert code == 0, said
    assert "## Permuted branches" in printed
    code, printed, said = msdask("experiment", toml, "--ablate", 1)
    assert printed.count(": kept: ") == 2


def test_what_is_wrong_is_said(msdask, tmp_path):
    code, _, said = msdask("experiment", tmp_path / "none.toml")
    assert code == 1
    assert "no such file; expected a TOML file" in said
    code, _, said = msdask("experiment", tmp_path / "none.toml", "--workers", 2, "--scheduler", "tcp://here")
    assert code == 1
    assert "two ways to run" in said
    (tmp_path / "odd.toml").write_text('stroe = "a"\n', encoding="utf-8")
    code, _, said = msdask("experiment", tmp_path / "odd.toml")
    assert code == 1
    assert "odd.toml': 'stroe' is not known: did you mean 'store'" in said
