"""A page of records with their boxes and the dialogue that the model will see.

Shows a seeded choice of records, spread over datasets and splits. As HTML: the boxes on the image,
upright and oriented, difficult and cut ones marked, and under them one row of a batch as the recipe
makes it, read back from its tokens: the padded square, every question, the boxes in the answers, the
token count. As PNG: a sheet of small pictures with boxes and the record's own texts.

examples:
  earthgpt data preview datasets --out look.html
  earthgpt data preview datasets/hit_uav --out look --split test --label car --seed 3
  earthgpt data preview datasets --out look.html --config earthgpt_13b:instruct --tokenizer tokenizer.model
  earthgpt data preview datasets --out sheet.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_PAGE = "index.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="a dataset directory, or a folder of several")
    parser.add_argument(
        "--out", type=Path, required=True, help="a page (.html), a folder for one (index.html), or a sheet (.png)"
    )
    parser.add_argument("--count", type=int, default=12, help="records (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another choice (default: 0)")
    parser.add_argument("--split", default="", help="only of this split: train, val or test")
    parser.add_argument("--sensor", help="only of this sensor: optical, sar or infrared")
    parser.add_argument("--task", help="only for this task, e.g. obb or vqa")
    parser.add_argument("--label", default="", help="only of this scene class, or with an object of it")
    parser.add_argument("--config", default="tiny:instruct", help="HTML: the recipe that asks (default: tiny:instruct)")
    parser.add_argument(
        "--tokenizer", type=Path, help="HTML: a SentencePiece model (default: the embedded one, whatever the recipe)"
    )


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.inspect.selection import select_records
    from earthgpt_jax.datasets.manifest import dataset_directories

    if args.count < 1:
        raise EarthGPTError(f"--count: expected at least 1, got {args.count}")
    out, kind = _target(args.out)
    folders = dataset_directories(args.dir)
    records = select_records(folders, count=args.count, seed=args.seed, wanted=_wanted(args))
    if kind == ".png":
        from earthgpt_jax.datasets.inspect.contact_sheet import contact_sheet

        contact_sheet(records).save(out)
    else:
        from earthgpt_jax.common.resources import assets_path
        from earthgpt_jax.config import load
        from earthgpt_jax.datasets.manifest import annotated_classes, read_manifest
        from earthgpt_jax.input.preview import render_page
        from earthgpt_jax.input.tokenizer import Tokenizer

        text = render_page(
            records,
            title=", ".join(folder.name for folder in folders),
            recipe=args.config,
            config=load(args.config),
            annotated={values["name"]: annotated_classes(values) for values in map(read_manifest, folders)},
            tokenizer=Tokenizer(args.tokenizer or assets_path("tiny", "tokenizer.model")),
        )
        out.parent.mkdir(exist_ok=True)
        out.write_text(text, encoding="utf-8")
    print(f"wrote {out}", file=sys.stderr)
    return 0


def _target(out: Path) -> tuple[Path, str]:
    """The file to write and its suffix; a name without one is a folder."""
    from earthgpt_jax.common.errors import EarthGPTError

    suffix = out.suffix.lower()
    if out.is_dir() or not suffix:
        out, suffix = out / _PAGE, ".html"
        place = out.parent.absolute().parent
    else:
        place = out.absolute().parent
    if suffix not in (".html", ".png") or not place.is_dir():
        raise EarthGPTError(
            f"--out {out}: expected the name of a page (.html) or of a sheet (.png) in a folder that exists, or a "
            "folder for a page"
        )
    return out, suffix


def _wanted(args: argparse.Namespace):
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.inspect.selection import RecordFilter
    from earthgpt_jax.records import Sensor, Task

    for option, enumeration in (("sensor", Sensor), ("task", Task)):
        value = getattr(args, option)
        if value is not None and value not in set(enumeration):
            raise EarthGPTError(f"--{option} {value}: expected one of {', '.join(enumeration)}")
    return RecordFilter(
        split=args.split,
        sensor=Sensor(args.sensor) if args.sensor else None,
        task=Task(args.task) if args.task else None,
        label=args.label,
    )
