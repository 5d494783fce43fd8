"""Text tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def align_columns(rows: Sequence[Sequence[str]], *, left: int = 1, indent: str = "") -> list[str]:
    """Return a table as lines, one per row.

    Args:
        rows: cells of each row; all rows have the same number.
        left: number of columns, from the first, that are left-aligned; the others are right-aligned.
        indent: put before each line.
    """
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(indent + "  ".join(cells).rstrip())
    return lines
