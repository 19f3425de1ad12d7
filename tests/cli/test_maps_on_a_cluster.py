"""`msdask segment` and `msdask predict classifier` with `--scheduler`: Dask workers that are processes of their own."""

# ruff: noqa: E402
from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

torch = pytest.importorskip("torch")
distributed = pytest.importorskip("distributed")

import msdask as ms
from msdask.cli.app import main
from msdask.models import HookNet, SingleScale, UNet, save_model
from tests.tools.cluster_tools import faulty_cluster
from tests.tools.store_tools import tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slides, and a file that is none."""
    folder = tmp_path_factory.mktemp("slides")
    for seed, name in enumerate("ab"):
        ms.sample.make_slide(folder / f"{name}.svs", size=(300, 420), mpp=0.5, seed=seed, levels=(1, 4), tile=64)
    (folder / "c.svs").write_bytes(b"no slide")
    return folder


def _model(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    path = folder / "m.safetensors"
    if kind == "classifier":
        save_model(SingleScale(3, (20,), backbone="scalenet", embedding=16), path, about={"patch_size": 48})
    else:
        network = UNet(3, (20,), filters=2) if kind == "unet" else HookNet(3, (20, 5), filters=2)
        save_model(network, path, about={"classes": ["gland", "stroma", "fat"]})
    return path


@pytest.mark.parametrize("kind", ["unet", "hooknet", "classifier"])
def test_a_cluster_of_processes_writes_the_same_bytes(slides, tmp_path, capsys, kind):
    model = _model(tmp_path, kind)
    command = ("predict", "classifier") if kind == "classifier" else ("segment",)
    own = () if kind == "classifier" else ("--tile", 128)

    def run(folder: str, *more: object) -> pd.DataFrame:
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in (*command, "-i", slides, "-p", model, "-o", tmp_path / folder, *own, *more)])
        said = capsys.readouterr().err
        assert left.value.code == 1, said  # one of the slides is none
        assert "c.svs" in said
        return pd.read_csv(tmp_path / folder / "slides.csv")

    here = run("here")
    with faulty_cluster(2) as client:
        there = run("there", "--scheduler", client.scheduler.address)
    assert there["state"].tolist() == ["complete", "complete", "failed"]
    pd.testing.assert_frame_equal(here, there)
    for folder in ("maps", "predictions") if kind == "classifier" else ("segmentations", "outlines"):
        found = tree(tmp_path / "there" / folder)
        assert len(found) >= 2
        assert found == tree(tmp_path / "here" / folder)
