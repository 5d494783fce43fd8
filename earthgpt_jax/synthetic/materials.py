"""The appearance of surface materials in each sensor.

A material defines its appearance for all sensors, so a scene is drawn once and can be rendered by any of them. Values
are typical of daytime imagery at mid-latitudes.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Material:
    """Appearance of one material.

    Attributes:
        rgb: mean colour, 0..255.
        sar: mean backscatter in dB (0 dB saturates the display).
        ir: apparent temperature, 0 (coldest) to 1 (hottest).
        spread: variation between instances, as a fraction of brightness; times 8 in dB, times 0.25 in temperature.
        grain: contrast of texture at pixel scale, as a fraction of brightness.
        patch: contrast of texture at 8 to 40 pixels.
        clump: contrast of shaded bumps of about 3 pixels (tree crowns, rubble).
        rows: contrast of parallel rows (furrows, mown stripes, waves).
        water: only ships and bridges are placed here.
    """

    rgb: tuple[int, int, int]
    sar: float
    ir: float
    spread: float = 0.08
    grain: float = 0.05
    patch: float = 0.05
    clump: float = 0.0
    rows: float = 0.0
    water: bool = False


MATERIALS: dict[str, Material] = {
    # natural
    "sea": Material((34, 64, 84), -21.0, 0.16, 0.12, 0.03, 0.06, 0.0, 0.05, water=True),
    "fresh": Material((52, 70, 66), -22.5, 0.20, 0.14, 0.02, 0.05, 0.0, 0.02, water=True),
    "shallow": Material((84, 132, 134), -19.5, 0.22, 0.06, 0.03, 0.08, 0.0, 0.05, water=True),
    "surf": Material((214, 222, 222), -9.0, 0.26, 0.03, 0.10, 0.12),
    "beach": Material((205, 188, 150), -16.0, 0.72, 0.06, 0.04, 0.06),
    "dune": Material((190, 154, 110), -15.5, 0.76, 0.08, 0.04, 0.07, 0.0, 0.10),
    "scree": Material((160, 128, 96), -11.0, 0.70, 0.08, 0.08, 0.10, 0.08),
    "grass": Material((102, 124, 68), -11.5, 0.42, 0.08, 0.06, 0.10, 0.04),
    "meadow": Material((122, 140, 82), -12.0, 0.45, 0.08, 0.06, 0.10, 0.05),
    "wood": Material((50, 74, 44), -7.0, 0.26, 0.10, 0.10, 0.12, 0.42),
    "shrub": Material((84, 98, 62), -10.0, 0.34, 0.10, 0.10, 0.10, 0.25),
    "rock": Material((128, 120, 110), -10.5, 0.56, 0.08, 0.10, 0.14, 0.12),
    "snow": Material((208, 218, 232), -14.0, 0.08, 0.03, 0.03, 0.04),
    "soil": Material((140, 112, 86), -9.5, 0.64, 0.12, 0.05, 0.08, 0.0, 0.10),
    "crop": Material((92, 124, 62), -10.5, 0.38, 0.24, 0.05, 0.08, 0.0, 0.14),
    "ripe": Material((186, 168, 104), -12.5, 0.54, 0.14, 0.04, 0.08, 0.0, 0.08),
    "pitch": Material((82, 134, 66), -13.5, 0.40, 0.08, 0.04, 0.04, 0.0, 0.12),
    # artificial ground
    "asphalt": Material((86, 87, 90), -17.5, 0.74, 0.10, 0.05, 0.05),
    "new asphalt": Material((68, 68, 72), -19.5, 0.90, 0.06, 0.04, 0.04),
    "concrete": Material((168, 166, 158), -15.5, 0.66, 0.06, 0.05, 0.06),
    "yard": Material((132, 126, 118), -10.0, 0.68, 0.10, 0.09, 0.10, 0.05),
    "track": Material((156, 140, 112), -14.0, 0.64, 0.08, 0.05, 0.06),
    "paint": Material((232, 232, 226), -15.0, 0.56, 0.02, 0.02, 0.0),
    "quay": Material((150, 146, 138), -9.0, 0.64, 0.08, 0.06, 0.06),
    # structures and vehicles
    "roof red": Material((158, 88, 68), -4.0, 0.93, 0.14, 0.06, 0.03),
    "roof grey": Material((120, 120, 124), -4.0, 0.94, 0.16, 0.05, 0.03),
    "roof pale": Material((206, 204, 198), -4.5, 0.88, 0.06, 0.03, 0.02),
    "roof blue": Material((84, 122, 168), -4.0, 0.92, 0.10, 0.03, 0.02),
    "car": Material((150, 150, 154), -5.0, 0.92, 0.36, 0.02, 0.0),
    "aluminium": Material((232, 233, 236), -1.0, 0.22, 0.04, 0.02, 0.0),
    "aluminium dark": Material((170, 174, 182), -2.0, 0.30, 0.04, 0.02, 0.0),
    "hull": Material((104, 64, 56), -3.5, 0.56, 0.30, 0.03, 0.0),
    "deck": Material((164, 156, 142), -6.0, 0.70, 0.14, 0.06, 0.0),
    "cargo": Material((166, 96, 64), -3.0, 0.62, 0.25, 0.03, 0.0),
    "cargo blue": Material((70, 98, 136), -3.0, 0.60, 0.25, 0.03, 0.0),
    "cargo pale": Material((176, 172, 160), -3.0, 0.58, 0.15, 0.03, 0.0),
    "bridge house": Material((236, 236, 234), 0.0, 0.86, 0.03, 0.02, 0.0),
    "tank": Material((222, 222, 218), -5.5, 0.50, 0.06, 0.02, 0.02),
    "tank rim": Material((170, 168, 164), -0.5, 0.82, 0.05, 0.02, 0.0),
    "trailer": Material((214, 216, 220), -6.5, 0.12, 0.14, 0.02, 0.0),
    "cab": Material((166, 62, 54), -2.5, 0.98, 0.35, 0.02, 0.0),
    "glass": Material((38, 44, 52), -6.0, 0.70, 0.05, 0.0, 0.0),
    "deck road": Material((142, 140, 138), -6.0, 0.82, 0.08, 0.04, 0.0),
    "rail": Material((206, 202, 196), -0.5, 0.60, 0.05, 0.02, 0.0),
    "court out": Material((62, 116, 88), -18.0, 0.60, 0.08, 0.02, 0.02),
    "court in": Material((64, 98, 156), -20.5, 0.80, 0.08, 0.02, 0.02),
    "court clay": Material((176, 96, 66), -20.5, 0.80, 0.08, 0.02, 0.02),
    "tartan": Material((168, 82, 64), -19.5, 0.84, 0.06, 0.02, 0.02),
    "blade": Material((240, 240, 238), 0.0, 0.14, 0.02, 0.0, 0.0),
    "nacelle": Material((222, 222, 222), 1.0, 0.95, 0.02, 0.0, 0.0),
}
