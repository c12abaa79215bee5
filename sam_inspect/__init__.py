"""sam_inspect: find defects in camera images, outline them with SAM, measure them, and say pass or fail."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # For long after each operation torch's threads turn round on cores that the next one's, or OpenVINO's, wait for.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
