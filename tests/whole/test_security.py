"""What files and tables from elsewhere cannot do: leave the store, run code, expand XML, open the machine to others."""

from __future__ import annotations

import ast
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

import msdask
from msdask.errors import MaskError, MsdaskError, SlideError, StoreError, TileError
from msdask.extraction.facts import NOTHING
from msdask.extraction.slide_table import read_slides
from msdask.masks.formats import read_content
from msdask.readers import open_reader
from msdask.sample.slides import SampleSlide
from msdask.slides.slide import open_slide
from msdask.store.layout import check_slide_id
from msdask.store.patch_store import PatchStore
from tests.tools.reader_files import smooth_image
from tests.tools.store_tools import lazy_grid

PACKAGE = Path(msdask.__file__).resolve().parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Dotted name of every call, as far as it is made of names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module, and every name from a module, that is imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# --- ids that cannot leave the store ----------------------------------------------------------------------------------

NASTY = st.sampled_from(
    [
        "..",
        "../x",
        "/etc/passwd",
        "a/../../b",
        "\\",
        "..\\x",
        "C:\\x",
        "a\0b",
        "zarr.json",
        "_index",
        ".",
        "",
        "~",
        "c",
        " a ",
        "0\x85",
        "a\x9bb",
    ]
)
IDS = st.one_of(NASTY, st.text(max_size=220), st.lists(st.sampled_from(["..", "/", "a", ".", "\\", "_"])).map("".join))


@settings(deadline=None)
@given(IDS)
def test_an_id_names_a_child_of_its_set_or_is_refused(slide_id: str) -> None:
    root = "/stores/cohort.zarr/grid"
    try:
        assert check_slide_id(slide_id) == slide_id
    except StoreError:
        return
    path = os.path.join(root, slide_id)
    assert os.path.dirname(path) == root
    assert os.path.normpath(path) == path
    assert slide_id.encode().decode() == slide_id
    assert slide_id not in ("zarr.json", "_index")


@settings(deadline=None)
@given(IDS)
def test_a_table_gives_only_such_ids(slide_id: str) -> None:
    try:
        rows = read_slides(pd.DataFrame({"path": ["/slides/a.svs"], "slide_id": [slide_id]}))
    except MsdaskError:
        return
    given = slide_id.strip()
    assert [check_slide_id(row.slide_id) for row in rows] == ["a.svs" if given in NOTHING else given or "a.svs"]


@pytest.mark.parametrize("bad", ["../outside", "/tmp/outside", "..", "a/b", "a\\b"])
def test_nothing_is_written_outside_the_store(bad: str, small_slide: SampleSlide, tmp_path: Path) -> None:
    store = PatchStore(tmp_path / "deep" / "s.zarr")
    lazy = lazy_grid(small_slide.path)
    with pytest.raises(StoreError):
        store.write(lazy.assign_attrs(slide_id=bad))
    with pytest.raises(StoreError):
        store.write(lazy, name=bad)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and not p.is_relative_to(tmp_path / "deep")]
    assert not outside


# --- the package's own code -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_file_is_run_or_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    forbidden = {
        "cPickle",
        "dill",
        "cloudpickle",
        "marshal",
        "shelve",
        "joblib",
        "yaml",
        "xmlrpc",
        "telnetlib",
    }
    assert not {name for name in imports(tree) if name.split(".")[0] in forbidden or name.startswith("pickle.")}
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        assert name not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), ast.unparse(call)
        options = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert options.get("shell", "False") == "False", ast.unparse(call)
        assert options.get("allow_pickle", "False") == "False", ast.unparse(call)
        if name == "pickle.loads":  # whether an object can travel; never what came from elsewhere
            assert ast.unparse(call).startswith("pickle.loads(pickle.dumps("), ast.unparse(call)
        assert name not in ("pickle.load", "pickle.Unpickler"), ast.unparse(call)
        assert last not in ("read_pickle", "to_pickle"), ast.unparse(call)
        if name in ("torch.load", "load_from_checkpoint") or last == "torch_load":
            assert options.get("weights_only") == "True", ast.unparse(call)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_xml_is_parsed_by_defusedxml_only(path: Path) -> None:
    """From the standard library come types and ParseError, never a parser."""
    harmless = {"xml.etree.ElementTree.Element", "xml.etree.ElementTree.ParseError", "xml.sax.saxutils.escape"}
    found = {
        name for name in imports(ast.parse(path.read_text(encoding="utf-8"))) if name.split(".")[0] in ("xml", "lxml")
    }
    assert found <= harmless


def test_templates_escape_what_slides_say() -> None:
    """Every jinja2 environment of the package is made with autoescape."""
    for path in SOURCES:
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            if name.rpartition(".")[2] in ("Environment", "Template"):
                options = {k.arg: ast.unparse(k.value) for k in call.keywords}
                assert options.get("autoescape", "False") != "False", f"{path.name}: {ast.unparse(call)}"


def test_the_package_starts_no_server() -> None:
    """What msdask starts by itself listens nowhere: its worker processes have inherited sockets."""
    servers = ("LocalCluster", "Nanny", "Scheduler", "Listener", "HTTPServer", "ThreadingHTTPServer", "TCPServer")
    for path in SOURCES:
        for name, call in calls(ast.parse(path.read_text(encoding="utf-8"))):
            assert name.rpartition(".")[2] not in servers, f"{path.name}: {ast.unparse(call)}"


def test_worker_processes_listen_nowhere() -> None:
    psutil = pytest.importorskip("psutil")
    from msdask.engines.open_engine import open_engine

    with open_engine(workers=2, jobs=1) as engine, engine.job(0) as trace:
        assert engine.call("step: x", trace, os.getpid) != os.getpid()
        process = psutil.Process()
        everyone = [process, *process.children(recursive=True)]
        assert len(everyone) >= 3
        assert not {c.laddr for p in everyone for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}


# --- bombs ------------------------------------------------------------------------------------------------------------


def png(width: int, height: int, *, color: int = 2, bits: int = 8, rows: bytes = bytes(100)) -> bytes:
    """A PNG that claims a size, with so many bytes of rows."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [100_000, 2**31 - 1])
def test_a_png_that_claims_a_huge_size_is_refused_when_it_is_opened(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    with pytest.raises(SlideError, match=r"bomb\.png"):
        open_slide(path)
    with pytest.raises(MaskError, match=r"bomb\.png"):
        read_content(str(path))


@pytest.mark.parametrize(("color", "bits"), [(0, 8), (0, 1), (2, 8), (2, 16), (3, 8), (6, 8)])
def test_a_png_whose_rows_end_early_is_refused_not_filled_with_black(tmp_path: Path, color: int, bits: int) -> None:
    path = tmp_path / "short.png"
    path.write_bytes(png(64, 10_000, color=color, bits=bits, rows=bytes(6400)))
    with pytest.raises(TileError, match="copy it again"):
        open_reader(path).read_tile(0, 0, 0)
    with pytest.raises(MaskError, match="cannot be read"):
        read_content(str(path))


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_whole_pngs_of_any_kind_pass_that_check(tmp_path: Path, mode: str, interlaced: bool) -> None:
    image = Image.fromarray(smooth_image(67, 45)).convert(mode)
    path = tmp_path / "whole.png"
    if interlaced:  # Pillow does not write these
        values = np.asarray(Image.fromarray(smooth_image(67, 45)))[:, :, 0]
        path.write_bytes(adam7(values))
        np.testing.assert_array_equal(read_content(str(path)).values, values)
    else:
        image.save(path)
    assert open_reader(path).read_tile(0, 0, 0).shape == (67, 45, 3)


def adam7(values: np.ndarray) -> bytes:
    """An interlaced gray PNG."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [values[y::dy, x::dx] for x, y, dx, dy in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    data = bytearray(png(values.shape[1], values.shape[0], color=0, rows=rows))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_a_text_chunk_that_inflates_is_refused(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "A" * (70 << 20), zip=True)
    path = tmp_path / "text.png"
    Image.fromarray(smooth_image(32, 32)).save(path, pnginfo=info)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(SlideError, match="header cannot be read"):
        open_slide(path)


@pytest.mark.parametrize("compression", ["deflate", "zstd", "lzw"])
def test_a_tile_that_inflates_to_more_than_its_pixels_is_refused(tmp_path: Path, compression: str) -> None:
    bomb = bytes(64 << 20)
    codes = {"deflate": (8, zlib.compress(bomb, 9)), "zstd": (50000, imagecodecs.zstd_encode(bomb))}
    codes["lzw"] = (5, imagecodecs.lzw_encode(bomb[: 4 << 20]))
    code, data = codes[compression]
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, smooth_image(32, 32), tile=(32, 32), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tif:
        tags = tif.pages[0].tags
        tags["Compression"].overwrite(code)
        tags["TileByteCounts"].overwrite(len(data))
        tags["TileOffsets"].overwrite(path.stat().st_size)
    with path.open("ab") as file:
        file.write(data)
    try:
        decoded = open_reader(path).read_tile(0, 0, 0)
    except TileError:
        return
    assert decoded.shape == (32, 32, 3)  # no further than its own size


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
BOMB = f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l0 "ha">{LAUGHS}]>'
OUTSIDE = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY l9 SYSTEM "file:///etc/hostname">]>'
ROOTS = {
    "ome": '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image Name="&l9;"/></OME>',
    "scn": '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="&l9;"/></scn>',
    "philips": '<DataObject ObjectType="DPUfsImport"><Attribute Name="PIM_DP">&l9;</Attribute></DataObject>',
    "plain": "<x>&l9;</x>",
}


@pytest.mark.parametrize("kind", ROOTS)
@pytest.mark.parametrize("declared", [BOMB, OUTSIDE], ids=["entities", "outside"])
def test_xml_bombs_in_descriptions_are_refused(tmp_path: Path, kind: str, declared: str) -> None:
    path = tmp_path / "bomb.tif"
    options = {"software": "Philips DP v1.0"} if kind == "philips" else {}
    image = smooth_image(32, 32)
    tifffile.imwrite(path, image, photometric="rgb", description=declared + ROOTS[kind], metadata=None, **options)
    with pytest.raises(SlideError, match="entities"):
        open_slide(path)
    tifffile.imwrite(path, image[:, :, 0], description=declared + ROOTS[kind], metadata=None)
    with pytest.raises(MaskError, match="entities"):
        read_content(str(path))


# --- what is installed ------------------------------------------------------------------------------------------------


def test_the_audit_lists_every_dependency_with_its_licence() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "audit.py"
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("numpy", "tifffile", "zarr", "crc32c", "defusedxml"):
        assert f"| {name} |" in run.stdout
