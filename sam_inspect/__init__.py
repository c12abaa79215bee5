"""sam_inspect: find defects in camera images, outline them with SAM, measure them, and say pass or fail."""

import os
import sys

if "OMP_WAIT_POLICY" not in os.environ:
    # For long after each operation torch's threads turn round on cores that the next one's, or OpenVINO's, wait for.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# Else OpenVINO, whoever imports it, reports that to its makers over the network and from a process of its own.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # which says that there is none
