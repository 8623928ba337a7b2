"""The zoo: published architectures by name, each a classifier, a backbone of a detector and the encoder of a U-Net.

One contract for all of them:
  backbone   images -> {name: map}, with `strides` and `channels` of the maps that are maps of cells;
  embedding  these maps -> [B, E], the pooled features;
  head       one dense layer `fc`, embedding -> classes.
`Classifier` puts the three together. A detector or a segmentation network takes the backbone alone; `levels` says which of its
maps, by their strides.

Shape letters: B batch, H W image, C channels, E embedding, K classes.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from imgrec_jax.models import mbconv, vgg
from imgrec_jax.models.convnext import ConvNeXt, PooledNorm
from imgrec_jax.models.densenet import DenseNet, DenseNetEmbedding
from imgrec_jax.models.layers import torch_uniform
from imgrec_jax.models.norm import make_norm
from imgrec_jax.models.resnet import RESNETS, STEMS
from imgrec_jax.models.transformer import ClassToken, Swin, ViT
from imgrec_jax.ops.precision import single


class GlobalPool(nn.Module):
    """The mean of the last map."""

    @nn.compact
    def __call__(self, maps: dict[str, jax.Array], *, train: bool = False) -> jax.Array:
        """A backbone's maps -> [B, E]."""
        return maps[list(maps)[-1]].mean(axis=(1, 2))


class Classifier(nn.Module):
    """A backbone, its embedding, dropout, and one dense layer `fc`."""

    backbone: nn.Module
    embedding: nn.Module
    num_classes: int
    dropout: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> logits [B, K], float32; needs a "dropout" key when training with dropout."""
        x = self.embedding(self.backbone(x, train=train), train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return single(nn.Dense(self.num_classes, kernel_init=torch_uniform, dtype=self.dtype, name="fc")(x))


class Parts(NamedTuple):
    """What an architecture is made of."""

    backbone: nn.Module
    embedding: nn.Module


class Architecture(NamedTuple):
    """family: which tables of names (`pretrained.names`) its weights go by; make: (**options) -> Parts; dropout: before the
    head."""

    family: str
    make: Callable[..., Parts]
    dropout: float = 0.0


def _norm(name: str, axis_name: str | None, epsilon: float = 1e-5) -> Callable[..., nn.Module]:
    return make_norm(name, axis_name=axis_name, **({"epsilon": epsilon} if name in ("batch", "frozen") else {}))


def _resnet(name: str) -> Callable[..., Parts]:
    def make(
        *,
        stem: str = "imagenet",
        norm: str = "batch",
        norm_epsilon: float = 1e-5,
        remat: bool = False,
        axis_name: str | None = None,
        dtype: Any = jnp.float32,
    ) -> Parts:
        if stem not in STEMS:
            raise ValueError(f"stem={stem!r} is unknown; choose one of {sorted(STEMS)}")
        made = _norm(norm, axis_name, norm_epsilon)
        return Parts(RESNETS[name](**STEMS[stem], norm=made, remat=remat, dtype=dtype), GlobalPool())

    return make


def _vgg(name: str) -> Callable[..., Parts]:
    stages = vgg.VGG_STAGES[name.removesuffix("_bn")]

    def plain(*, pool_only: bool = False, hidden: int = 4096, dtype: Any = jnp.float32) -> Parts:
        return Parts(vgg.VGG(stages, dtype=dtype), vgg.VGGEmbedding(pool_only, hidden, dtype=dtype))

    def normed(
        *,
        pool_only: bool = False,
        hidden: int = 4096,
        norm: str = "batch",
        axis_name: str | None = None,
        dtype: Any = jnp.float32,
    ) -> Parts:
        trunk = vgg.VGG(stages, norm=_norm(norm, axis_name), dtype=dtype)
        return Parts(trunk, vgg.VGGEmbedding(pool_only, hidden, dtype=dtype))

    return normed if name.endswith("_bn") else plain


def _mbconv(name: str) -> Callable[..., Parts]:
    net = mbconv.NETS[name]

    def make(
        *,
        padding: str = net.padding,
        norm: str = "batch",
        norm_epsilon: float = net.epsilon,
        drop_path: float = 0.0,
        remat: bool = False,
        axis_name: str | None = None,
        dtype: Any = jnp.float32,
    ) -> Parts:
        mbconv.padding_of(padding, 1)
        table, made = net._replace(padding=padding), _norm(norm, axis_name, norm_epsilon)
        backbone = mbconv.MBBackbone(table, drop_path, remat, norm=made, dtype=dtype)
        return Parts(backbone, mbconv.MBEmbedding(table, norm=made, dtype=dtype))

    return make


def _densenet121(
    *,
    norm: str = "batch",
    norm_epsilon: float = 1e-5,
    remat: bool = False,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
) -> Parts:
    made = _norm(norm, axis_name, norm_epsilon)
    return Parts(DenseNet(remat=remat, norm=made, dtype=dtype), DenseNetEmbedding(norm=made, dtype=dtype))


def _convnext(depths: tuple[int, ...]) -> Callable[..., Parts]:
    def make(*, drop_path: float = 0.0, remat: bool = False, dtype: Any = jnp.float32) -> Parts:
        return Parts(ConvNeXt(depths, drop_path=drop_path, remat=remat, dtype=dtype), PooledNorm(1e-6, dtype=dtype))

    return make


def _vit(width: int, heads: int, patch: int) -> Callable[..., Parts]:
    def make(*, plain: bool = False, drop_path: float = 0.0, remat: bool = False, dtype: Any = jnp.float32) -> Parts:
        vit = ViT(width, 12, heads, patch, drop_path, remat, plain, dtype=dtype)
        return Parts(vit, GlobalPool() if plain else ClassToken())

    return make


def _swin_t(*, drop_path: float = 0.0, remat: bool = False, dtype: Any = jnp.float32) -> Parts:
    return Parts(Swin(drop_path=drop_path, remat=remat, dtype=dtype), PooledNorm(1e-5, norm_first=True, dtype=dtype))


def _family(name: str) -> str:
    """mobilenet_v1_075 -> mobilenet_v1, mobilenet_v3_large -> mobilenet_v3, efficientnet_lite0 -> efficientnet."""
    return name[: len("mobilenet_v1")] if name.startswith("mobilenet") else "efficientnet"


ARCHITECTURES: dict[str, Architecture] = {
    **{name: Architecture("resnet", _resnet(name)) for name in RESNETS},
    **{f"{name}{end}": Architecture("vgg", _vgg(f"{name}{end}"), 0.5) for name in vgg.VGG_STAGES for end in ("", "_bn")},
    **{name: Architecture(_family(name), _mbconv(name), mbconv.NETS[name].dropout) for name in mbconv.NETS},
    "densenet121": Architecture("densenet", _densenet121),
    "convnext_tiny": Architecture("convnext", _convnext((3, 3, 9, 3))),
    "convnext_small": Architecture("convnext", _convnext((3, 3, 27, 3))),
    "vit_s_16": Architecture("vit", _vit(384, 6, 16)),
    "vit_b_16": Architecture("vit", _vit(768, 12, 16)),
    "vit_b_32": Architecture("vit", _vit(768, 12, 32)),
    "swin_t": Architecture("swin", _swin_t),
}


def make_classifier(name: str, *, num_classes: int = 1000, dropout: float | None = None, **options: Any) -> Classifier:
    """The architecture of that name as a classifier.

    Args:
      num_classes: K.
      dropout: before the head; None is the architecture's own.
      options: of the architecture; see its entry.
    """
    architecture = ARCHITECTURES[name]
    rate = architecture.dropout if dropout is None else dropout
    return Classifier(*architecture.make(**options), num_classes, rate, options.get("dtype"))


def classifier(name: str) -> Callable[..., Classifier]:
    """`make_classifier` of one name, whose signature lists the options of that architecture."""
    architecture = ARCHITECTURES[name]
    made: Any = functools.partial(make_classifier, name)
    own = [
        inspect.Parameter("num_classes", inspect.Parameter.KEYWORD_ONLY, default=1000, annotation=int),
        inspect.Parameter("dropout", inspect.Parameter.KEYWORD_ONLY, default=architecture.dropout, annotation=float),
    ]
    made.__signature__ = inspect.Signature([*own, *inspect.signature(architecture.make).parameters.values()])
    return made


def make_backbone(name: str, *, trunk: Mapping[str, Any], **common: Any) -> nn.Module:
    """The backbone alone.

    Args:
      trunk: options of the architecture.
      common: options that it is given if it has them: a ConvNeXt has no choice of `norm`.
    """
    make = ARCHITECTURES[name].make
    accepted = inspect.signature(make).parameters
    unknown = sorted(set(trunk) - set(accepted))
    if unknown:
        raise ValueError(f"trunk: {name} takes no {unknown}; it takes {sorted(set(accepted) - {'axis_name', 'dtype'})}")
    return make(**{**{key: value for key, value in common.items() if key in accepted}, **trunk}).backbone


def levels_by_stride(strides: dict[str, int], wanted: Sequence[int] = ()) -> tuple[str, ...]:
    """The deepest map of each stride, the finest first; of `wanted` strides where they are given.

    Raises:
      ValueError: when there is no map of a wanted stride.
    """
    deepest = {stride: name for name, stride in strides.items()}
    missing = [stride for stride in wanted if stride not in deepest]
    if missing:
        raise ValueError(f"there are no maps of stride {missing}: it has {strides}")
    return tuple(deepest[stride] for stride in (wanted or sorted(deepest)))
