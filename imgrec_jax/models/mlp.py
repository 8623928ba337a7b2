"""Linear models and multi-layer perceptrons on flattened images.

Shape letters: B batch, H W C image, K classes.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from imgrec_jax.models.layers import activation, initializer


class Mlp(nn.Module):
    """Flatten, then dense layers; without hidden layers this is linear regression or softmax regression by its loss.

    Attributes:
      num_classes: outputs K.
      hidden: widths of the hidden layers; () for a linear model.
      activation, kernel_init: names of `layers.py`.
      dropout: rate after every hidden layer.
    """

    num_classes: int = 10
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    kernel_init: str = "lecun_normal"
    dropout: float = 0.0
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """x [B, H, W, C] -> logits [B, K]."""
        init = initializer(self.kernel_init)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.hidden):
            x = nn.Dense(width, kernel_init=init, dtype=self.dtype, name=f"dense{i + 1}")(x)
            x = activation(self.activation)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=init, dtype=self.dtype, name="logits")(x)
