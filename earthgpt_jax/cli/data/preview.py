"""A page of records with their boxes and their dialogue as the model sees it.

Shows a random choice of records, spread over datasets and splits. As HTML: horizontal and oriented boxes on the image,
with difficult and cut ones marked, and below them a packed sequence as the recipe builds it, decoded from its tokens:
the padded square, every question, the boxes in the answers and the number of tokens. As PNG: a sheet of small pictures
with boxes and the record's own texts.

examples:
  earthgpt data preview datasets --out look.html
  earthgpt data preview datasets/hit_uav --out look --split test --label car --seed 3
  earthgpt data preview datasets --out look.html --config earthgpt_13b:instruct --tokenizer tokenizer.model
  earthgpt data preview datasets --out sheet.png
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from earthgpt_jax.cli.made_by import made_by
from earthgpt_jax.common import files

if TYPE_CHECKING:
    from earthgpt_jax.datasets.inspect.selection import RecordFilter

_PAGE = "index.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=files.path, help="a dataset directory, or a folder of several")
    parser.add_argument(
        "--out",
        type=files.output_path,
        required=True,
        help="a page (.html), a folder for one (index.html), or a sheet (.png)",
    )
    parser.add_argument("--count", type=int, default=12, help="records (default: 12)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice (default: 0)")
    parser.add_argument("--split", default="", help="only records of this split: train, val or test")
    parser.add_argument("--sensor", help="only records of this sensor: optical, sar or infrared")
    parser.add_argument("--task", help="only records for this task, such as obb or vqa")
    parser.add_argument("--label", default="", help="only records of this scene class, or with an object of this class")
    parser.add_argument("--config", default="tiny:instruct", help="HTML: recipe (default: tiny:instruct)")
    parser.add_argument(
        "--tokenizer",
        type=files.path,
        help="HTML: tokenizer.model or tokenizer.json (default: the embedded one, for every recipe)",
    )


def run(args: argparse.Namespace) -> int:
    from earthgpt_jax.common.errors import EarthGPTError
    from earthgpt_jax.datasets.inspect.selection import select_records
    from earthgpt_jax.datasets.manifest import dataset_directories

    if args.count < 1:
        raise EarthGPTError(f"--count: expected at least 1, got {args.count}")
    out, suffix = _target(args.out)
    folders = dataset_directories(args.dir)
    records = select_records(folders, count=args.count, seed=args.seed, wanted=_record_filter(args))
    if suffix == ".png":
        from earthgpt_jax.datasets.inspect.contact_sheet import contact_sheet

        content = io.BytesIO()
        contact_sheet(records).save(content, format="PNG")
        files.write_output(out, content.getvalue())
    else:
        from earthgpt_jax.common.resources import assets_path
        from earthgpt_jax.config import load
        from earthgpt_jax.datasets.manifest import annotated_classes, read_manifest
        from earthgpt_jax.input.preview import render_page
        from earthgpt_jax.input.tokenizer import Tokenizer

        manifests = [read_manifest(folder) for folder in folders]
        text = render_page(
            records,
            title=", ".join(folder.name for folder in folders),
            recipe=args.config,
            config=load(args.config),
            annotated={values["name"]: annotated_classes(values) for values in manifests},
            made_by=made_by(args, inputs={values["name"]: values["fingerprint"] for values in manifests}),
            tokenizer=Tokenizer(args.tokenizer or assets_path("tiny", "tokenizer.model")),
        )
        files.write_output(out, text.encode())
    print(f"wrote {out}", file=sys.stderr)
    return 0


def _target(out: Path) -> tuple[Path, str]:
    """Return the file to write and its suffix; a name without suffix is a folder."""
    from earthgpt_jax.common.errors import EarthGPTError

    suffix = out.suffix.lower()
    if out.is_dir() or not suffix:
        out, suffix = out / _PAGE, ".html"
        parent = out.parent.absolute().parent
    else:
        parent = out.absolute().parent
    if suffix not in (".html", ".png") or not files.accepts_files(parent):
        raise EarthGPTError(
            f"--out {out}: expected the name of a page (.html) or a sheet (.png) in an existing folder, or a folder "
            "for a page"
        )
    return out, suffix


def _record_filter(args: argparse.Namespace) -> RecordFilter:
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
