"""The parts of `scripts/bench/gpu.py`: each measures one thing on one device and reports its results."""
