"""Boxes: conversion between pixels, the padded square, tiles and text. The only package that knows box formats.

Conventions: pixel coordinates have x to the right and y down, and are continuous: 0 is the left edge of the first
pixel. A polygon is f32[8], x1,y1,...,x4,y4, clockwise on screen from the corner with the smallest y (then the smallest
x). Angles are radians, clockwise on screen.

`polygons` converts and validates boxes, `frames` converts coordinates between frames, `plurals` has English counts,
`writing` has MMRS's text format and JSON, `parsing` reads MMRS's, and `formats` has the table of all formats: `parse`
reads any of them.
"""

from earthgpt_jax.boxes.formats import AUTO, BOX_FORMATS, MMRS, BoxFormat, parse, read_answer, write_boxes
from earthgpt_jax.boxes.frames import Frame, FullImage, Square, Window
from earthgpt_jax.boxes.parsing import Parsed, ParsedBox
from earthgpt_jax.boxes.plurals import count_phrase, plural, singular
from earthgpt_jax.boxes.polygons import (
    BoxKind,
    RotatedBox,
    area,
    canonical,
    clip,
    degeneracy,
    min_area_rect,
    polygon_to_rect,
    polygon_to_rotated,
    rect_to_polygon,
    rotated_to_polygon,
)
from earthgpt_jax.boxes.writing import (
    JsonStyle,
    Shortlist,
    detection_sentence,
    format_boxes,
    format_detection,
    format_json,
    shortlist,
)

__all__ = [
    "AUTO",
    "BOX_FORMATS",
    "MMRS",
    "BoxFormat",
    "BoxKind",
    "Frame",
    "FullImage",
    "JsonStyle",
    "Parsed",
    "ParsedBox",
    "RotatedBox",
    "Shortlist",
    "Square",
    "Window",
    "area",
    "canonical",
    "clip",
    "count_phrase",
    "degeneracy",
    "detection_sentence",
    "format_boxes",
    "format_detection",
    "format_json",
    "min_area_rect",
    "parse",
    "plural",
    "polygon_to_rect",
    "polygon_to_rotated",
    "read_answer",
    "rect_to_polygon",
    "rotated_to_polygon",
    "shortlist",
    "singular",
    "write_boxes",
]
