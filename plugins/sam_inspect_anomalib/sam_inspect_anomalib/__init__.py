"""sam_inspect in anomalib's world: its models with masks that SAM has refined.

`SamRefined` wraps a model; after the import of this package `get_model("sam_refined")` knows it. `SamPostProcessor` is
the same for a model that is there already. `metrics` has mask measures as anomalib metrics.
"""

from sam_inspect_anomalib.metrics import BoundaryIoU, ExactAUPRO, MaskIoU, MasksOver75, MasksOver90, RegionF1
from sam_inspect_anomalib.model import SamRefined
from sam_inspect_anomalib.post_processor import SamPostProcessor

__all__ = [
    "BoundaryIoU",
    "ExactAUPRO",
    "MaskIoU",
    "MasksOver75",
    "MasksOver90",
    "RegionF1",
    "SamPostProcessor",
    "SamRefined",
]
