"""Whole commands on large scenes: kills, several processes, peak memory. Slow."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from earthgpt_jax.synthetic import SyntheticSource
from tests.support.rasters import raster_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
MIB = 1 << 20
OPTIONS = ("--window-size", "96", "--overlap", "48", "--boxes", "obb", "--max-new-tokens", "160", "--quiet")
ENVIRONMENT = {**os.environ, "EARTHGPT_PROCESSES": "1", "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mosaic of synthetic scenes, 640 px wide and high, with a corner without data."""
    source, side = SyntheticSource("test", 25), 128
    pixels = np.zeros((5 * side, 5 * side, 3), np.uint8)
    for i in range(25):
        with Image.open(io.BytesIO(source[i].image)) as image:
            y, x = i // 5 * side, i % 5 * side
            pixels[y : y + side, x : x + side] = np.maximum(np.asarray(image.convert("RGB").resize((side, side))), 1)
    pixels[400:, 400:] = 0
    path = tmp_path_factory.mktemp("large") / "scene.tif"
    path.write_bytes(raster_file(np.moveaxis(pixels, -1, 0), nodata=0, tiled=True, blockxsize=128, blockysize=128))
    return path


def start(scene: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "earthgpt_jax", "detect", str(scene), "--out", str(out), *OPTIONS, *more]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate()
    assert process.returncode == 0, err.decode()


def test_a_run_that_is_killed_at_ten_moments_ends_with_the_same_bytes(scene: Path, tmp_path: Path):
    expected, out = tmp_path / "expected" / "boxes.gpkg", tmp_path / "killed" / "boxes.gpkg"
    expected.parent.mkdir()
    out.parent.mkdir()
    finish(start(scene, expected))
    lines = _lines(expected)
    rng, log = random.Random(4), out.with_name("boxes.gpkg.windows.jsonl")
    for number in range(10):
        process = start(scene, out)
        wanted = _lines(out) + rng.randint(0, lines // 20)
        while process.poll() is None and _lines(out) < wanted:
            time.sleep(0.005)
        if number % 3 == 0:
            time.sleep(rng.uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed = _lines(out)
    finish(start(scene, out))
    assert 10 < killed < lines and log.exists()
    assert out.read_bytes() == expected.read_bytes()
    asked = [json.loads(line).get("window") for line in log.read_text().splitlines()]
    windows = [tuple(window) for window in asked if window]
    assert len(windows) == len(set(windows))


def _lines(out: Path) -> int:
    log = out.with_name(f"{out.name}.windows.jsonl")
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.multiprocess
def test_two_processes_write_what_one_writes(scene: Path, tmp_path: Path):
    one, two = tmp_path / "one" / "boxes.gpkg", tmp_path / "two" / "boxes.gpkg"
    one.parent.mkdir()
    two.parent.mkdir()
    finish(start(scene, one))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    both = [
        start(scene, two, "--coordinator", f"localhost:{port}", "--processes", "2", "--process", str(i))
        for i in range(2)
    ]
    for process in both:
        finish(process)
    assert two.read_bytes() == one.read_bytes()
    shares = [len(path.read_text().splitlines()) for path in sorted(two.parent.glob("*.jsonl"))]
    assert len(shares) == 2 and abs(shares[0] - shares[1]) <= 1


PEAK = """
import resource, sys
from earthgpt_jax.cli.main import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(status)
"""


def test_memory_does_not_grow_with_the_scene(tmp_path: Path):
    peaks = {}
    for side in (1000, 20000):
        path = tmp_path / f"{side}.tif"
        rng = np.random.default_rng(0)
        with rasterio.open(
            path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint16", tiled=True, blockxsize=512,
            blockysize=512, compress="lzw", photometric="RGB", bigtiff="YES",
        ) as raster:  # fmt: skip
            tile = rng.integers(1, 4000, (3, 512, 512), np.uint16)
            tile[:] = np.sort(tile, axis=2)  # compresses well
            for _, window in raster.block_windows(1):
                raster.write(tile[:, : window.height, : window.width], window=window)
        out = tmp_path / f"{side}.gpkg"
        done = subprocess.run(
            [sys.executable, "-c", PEAK, "detect", str(path), "--out", str(out), "--window-size", "1024", "--quiet",
             "--max-new-tokens", "16", "--draw", str(tmp_path / "look.png")],
            env=ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks[side] = int(done.stdout.split()[-1])
    assert peaks[20000] - peaks[1000] < 100 * MIB, peaks
