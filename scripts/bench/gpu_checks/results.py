"""Results of the parts, and the table that they are written to."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One measured quantity, next to what it is compared with.

    Attributes:
        part: name of the part that measured it.
        case: model, stage and sizes.
        quantity: what was measured.
        value: the measured value.
        unit: unit of `value` and `reference`.
        compared_with: what `reference` is; "" without a reference.
        reference: None without one, for example the peak rate of a device that the table of GPUs does not have.
    """

    part: str
    case: str
    quantity: str
    value: float
    unit: str = ""
    compared_with: str = ""
    reference: float | None = None

    @property
    def ratio(self) -> float | None:
        """`value` divided by `reference`."""
        return self.value / self.reference if self.reference else None

    def __str__(self) -> str:
        text = f"{self.case}: {self.quantity} {_number(self.value)} {self.unit}".rstrip()
        if self.reference is None:
            return text
        text += f"; {self.compared_with} {_number(self.reference)} {self.unit}".rstrip()
        return text if self.ratio is None else f"{text}; ratio {self.ratio:.3f}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartStatus:
    """How a part ended.

    Attributes:
        status: `ok`, `failed` or `not run`.
        message: why a part failed or was not run.
    """

    part: str
    status: str
    seconds: float = 0.0
    message: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorder:
    """Prints the results of one part, and appends them to a file as they come.

    Attributes:
        part: name of the part.
        path: JSON-lines file; one line per result.
    """

    part: str
    path: Path

    def add(
        self,
        case: str,
        quantity: str,
        value: float,
        unit: str = "",
        *,
        compared_with: str = "",
        reference: float | None = None,
    ) -> None:
        """Record one result; see `Result`."""
        result = Result(
            part=self.part, case=case, quantity=quantity, value=float(value), unit=unit,
            compared_with=compared_with if reference is not None else "", reference=reference,
        )  # fmt: skip
        print(f"[{self.part}] {result}", flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(result)) + "\n")

    def say(self, text: str) -> None:
        """Print progress that is no result."""
        print(f"[{self.part}] {text}", flush=True)


def first_line(error: BaseException) -> str:
    """Return the type of an error and the first line of its message, at most 200 characters of it."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"


def read(path: Path) -> list[Result]:
    """Return the results in a JSON-lines file; a last line that was cut off by a kill is ignored."""
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            results.append(Result(**json.loads(line)))
        except json.JSONDecodeError:
            break
    return results


def write_table(folder: Path, *, about: dict[str, str], results: Sequence[Result], parts: Iterable[PartStatus]) -> None:
    """Write `gpu.json` and `gpu.md` into `folder`.

    Args:
        about: device and versions.
        results: all results so far.
        parts: the status of each part, in the order in which they run.
    """
    parts = list(parts)
    values = {
        "about": about,
        "parts": [dataclasses.asdict(part) for part in parts],
        "results": [{**dataclasses.asdict(result), "ratio": result.ratio} for result in results],
    }
    lines = ["# One GPU: attention, training steps, decoding", ""]
    lines += [f"- {name}: {value}" for name, value in about.items()]
    lines += ["", "| part | status | seconds | message |", "|---|---|--:|---|"]
    lines += [_row(part.part, part.status, f"{part.seconds:.0f}", part.message) for part in parts]
    lines += ["", "| part | case | quantity | measured | unit | compared with | value | ratio |"]
    lines += ["|---|---|---|--:|---|---|--:|--:|"]
    for result in results:
        reference = "" if result.reference is None else _number(result.reference)
        ratio = "" if result.ratio is None else f"{result.ratio:.3f}"
        lines.append(
            _row(
                result.part, result.case, result.quantity, _number(result.value), result.unit, result.compared_with,
                reference, ratio,
            )
        )  # fmt: skip
    _replace(folder / "gpu.json", json.dumps(values, indent=1) + "\n")
    _replace(folder / "gpu.md", "\n".join(lines) + "\n")


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
