"""Measure time and memory of `earthgpt data build`, compared with copying the same files.

    python scripts/bench/build.py --images 1000 --images 10000 --workers 1 --workers 2

Writes native datasets of synthetic images in YOLO's layout, copies each one, and builds it. The images are a few
hundred scenes, each under many names, because drawing thousands of scenes would take longer than everything else.
Prints one line per build: seconds of copying and of building, CPU seconds (which do not depend on other work on the
machine), their ratios, images per second, and the peak memory of the command and of its largest worker.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.boxes import polygon_to_rect
from earthgpt_jax.records import Record
from earthgpt_jax.synthetic import SyntheticSource

_BUILD = """
import json, resource, sys
from earthgpt_jax.cli.main import main
if __name__ == "__main__":
    status = main(sys.argv[1:])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(u.ru_utime + u.ru_stime for u in used)
    print(json.dumps({"status": status, "cpu": cpu, "mib": [u.ru_maxrss >> 10 for u in used]}))
"""


def write_native(folder: Path, records: list[Record], *, count: int) -> Path:
    """Write `count` images with labels to `folder/sar/SSDD-yolo`, where the card `ssdd_yolo` expects them.

    Args:
        records: the scenes to write, repeated as often as necessary.

    Returns:
        the folder of the dataset.
    """
    target = folder / "sar" / "SSDD-yolo"
    target.mkdir(parents=True)
    for number in range(count):
        record = records[number % len(records)]
        (target / f"{number:06d}.png").write_bytes(record.image)
        (target / f"{number:06d}.txt").write_text(
            "".join(map(_yolo_line, (o.polygon / record.width for o in record.objects)))
        )
    return target


def _yolo_line(polygon: np.ndarray) -> str:
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in polygon_to_rect(polygon))
    return f"0 {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"


def measure(native: Path, out: Path, *, workers: int) -> tuple[float, dict[str, Any]]:
    """Run a build in its own process; return its duration in seconds and its status, CPU seconds and memory."""
    arguments = ["data", "build", "ssdd_yolo", "--root", str(native), "--out", str(out), "--workers", str(workers)]
    start = time.perf_counter()
    process = subprocess.run([sys.executable, "-c", _BUILD, *arguments], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, action="append", help="number of images; can be repeated (default: 1000)")
    parser.add_argument(
        "--workers", type=int, action="append", help="number of worker processes; can be repeated (default: 1)"
    )
    parser.add_argument("--size", type=int, default=256, help="side of the images in pixels (default: 256)")
    parser.add_argument("--drawn", type=int, default=200, help="number of different images (default: 200)")
    parser.add_argument("--folder", type=Path, help="folder for temporary files (default: the system's)")
    args = parser.parse_args()

    records = list(SyntheticSource("train", args.drawn, size=args.size))
    for count in args.images or [1000]:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            native = write_native(folder / "native", records, count=count)
            size = sum(path.stat().st_size for path in native.iterdir())
            start, cpu_start = time.perf_counter(), time.process_time()
            shutil.copytree(native, folder / "copy")
            copying, cpu = time.perf_counter() - start, time.process_time() - cpu_start
            for workers in args.workers or [1]:
                seconds, usage = measure(folder / "native", folder / f"out{workers}", workers=workers)
                print(
                    f"{count} images, {size / 1e6:.0f} MB, {workers} workers: copy {copying:.1f} s ({cpu:.1f} CPU), "
                    f"build {seconds:.1f} s ({usage['cpu']:.1f} CPU), ratio {seconds / copying:.1f} "
                    f"({usage['cpu'] / cpu:.1f} CPU), {count / seconds:.0f} images/s, memory {usage['mib'][0]} MiB, "
                    f"largest worker {usage['mib'][1]} MiB, status {usage['status']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
