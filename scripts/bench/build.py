"""How long `earthgpt data build` takes beside plainly copying the same files, and how much memory.

    python scripts/bench/build.py --images 1000 --images 10000 --workers 1 --workers 2

Writes native trees of synthetic images in YOLO's layout (some hundred drawn scenes, each under many names: drawing
ten thousand would take longer than all the rest), copies each tree and builds it. One line a build: seconds of
copying and of building, and CPU seconds (which other work on the machine does not change), their ratios, images a
second, and the peak memory of the command and of its largest worker.
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
    """`count` images with labels in `folder/sar/SSDD-yolo`; returns it."""
    target = folder / "sar" / "SSDD-yolo"
    target.mkdir(parents=True)
    for number in range(count):
        record = records[number % len(records)]
        (target / f"{number:06d}.png").write_bytes(record.image)
        (target / f"{number:06d}.txt").write_text(
            "".join(map(_line, (o.polygon / record.width for o in record.objects)))
        )
    return target


def _line(polygon) -> str:
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in polygon_to_rect(polygon))
    return f"0 {(x0 + x1) / 2:.6f} {(y0 + y1) / 2:.6f} {x1 - x0:.6f} {y1 - y0:.6f}\n"


def measure(native: Path, out: Path, *, workers: int) -> tuple[float, dict]:
    """Seconds of a build in a process of its own, and what it says of itself."""
    words = ["data", "build", "ssdd_yolo", "--root", str(native), "--out", str(out), "--workers", str(workers)]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _BUILD, *words], check=True, capture_output=True, text=True)
    return time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, action="append", help="size of a tree (default: 1000)")
    parser.add_argument("--workers", type=int, action="append", help="of a build (default: 1)")
    parser.add_argument("--size", type=int, default=256, help="side of the images, px (default: 256)")
    parser.add_argument("--drawn", type=int, default=200, help="different images (default: 200)")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()

    records = list(SyntheticSource("train", args.drawn, size=args.size))
    for count in args.images or [1000]:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            tree = write_native(folder / "native", records, count=count)
            size = sum(path.stat().st_size for path in tree.iterdir())
            began, cpu = time.perf_counter(), time.process_time()
            shutil.copytree(tree, folder / "copy")
            copying, cpu = time.perf_counter() - began, time.process_time() - cpu
            for workers in args.workers or [1]:
                seconds, said = measure(folder / "native", folder / f"out{workers}", workers=workers)
                print(
                    f"{count} images, {size / 1e6:.0f} MB, {workers} workers: copy {copying:.1f} s ({cpu:.1f} CPU), "
                    f"build {seconds:.1f} s ({said['cpu']:.1f} CPU), ratio {seconds / copying:.1f} "
                    f"({said['cpu'] / cpu:.1f} CPU), {count / seconds:.0f} images/s, memory {said['mib'][0]} MiB, "
                    f"largest worker {said['mib'][1]} MiB, status {said['status']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
