"""The original SE-ResNet, from Caffe, with the layout and names of segmentation_models_pytorch."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import torch_uniform
from densezoo.deprecation import renamed
from densezoo.encoders.base import register_encoders
from densezoo.encoders.resnet import Bottleneck, ResNet
from densezoo.naming import SMP, Naming, Rule
from densezoo.ops import max_pool
from densezoo.types import Initializer, ModuleDef


class CaffeBottleneck(Bottleneck):
    """1x1, 3x3, 1x1 convolutions and a shortcut; the stride is on the first, which skips three of four pixels."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        y = self.conv(self.features, 1, self.strides, name="conv1")(x, train=train)
        y = self.conv(self.features, dilation=self.dilations[0], name="conv2")(y, train=train)
        y = (self.last or self.conv)(self.features * self.expansion, 1, act=None, name="conv3")(y, train=train)
        return self.join(x, y, train=train)


@renamed(stage_sizes="depths")
class SENet(ResNet):
    """A ResNet with channel gates in each block, as in the authors' Caffe models.

    Unlike `ResNet` with `squeeze_excite`, the strides are on other convolutions, and the first pooling has no padding,
    so it rounds odd sides down.

    Attributes:
        block: `CaffeBottleneck`.
        kernel_init: torch's default, as in the reference.

    The other fields are those of `ResNet`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = SENet(depths=(1, 1, 1, 1))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 32, 33, 64), (1, 16, 16, 256), (1, 8, 8, 512), (1, 4, 4, 1024), (1, 2, 2, 2048)]

    References:
        Hu et al., Squeeze-and-excitation networks, 2017. https://arxiv.org/abs/1709.01507 (table 1)
    """

    block: ModuleDef = CaffeBottleneck
    squeeze_excite: bool = True
    kernel_init: Initializer = torch_uniform
    min_size = 3  # needed by the pooling

    def pool(self, x: jax.Array) -> jax.Array:
        """Max-pooling without padding, but for a last window that half the pixels fill."""
        beyond = [(0, (side + 1) % 2) for side in x.shape[1:3]]
        return max_pool(jnp.pad(x, ((0, 0), *beyond, (0, 0)), constant_values=-jnp.inf), 3, 2)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch, as in the Caffe models' first port to PyTorch."""
        stem = [Rule(r"conv1/conv", "layer0.conv1"), Rule(r"conv1/norm", "layer0.bn1")]
        rules = [*stem, *self.block_rules("se_module")]
        namings = [Naming(SMP, rules, "encoder."), Naming(SMP, rules, ignored=r"last_linear\..*")]
        return self.ignoring_deeper(namings)


# Hu et al. 2017, table 1
register_encoders(
    {
        "se_resnet50": partial(SENet, depths=(3, 4, 6, 3)),
        "se_resnet101": partial(SENet, depths=(3, 4, 23, 3)),
        "se_resnet152": partial(SENet, depths=(3, 8, 36, 3)),
    }
)
