"""DenseNet, with torchvision's layout and names."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, Conv, norm_act, run_block
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import Naming, Rule, backbone, ignoring
from densezoo.ops import avg_pool, max_pool
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid


def _norm_act(norm: ModuleDef | None, act: Callable[[jax.Array], jax.Array], x: jax.Array, **fields: Any) -> jax.Array:
    return act(x) if norm is None else norm_act(norm, act, x, **fields)


class DenseLayer(nn.Module):
    """Norm, activation, 1x1 convolution; norm, activation, 3x3 convolution (Huang et al. 2016, section 3).

    Attributes:
        features: channels of the result.
        hidden: channels between the convolutions.
        conv: factory of convolutions.
        norm_act: (x, train=, name=) -> normalised and activated.
    """

    features: int
    hidden: int
    conv: ModuleDef
    norm_act: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w d"]:
        y = self.conv(self.hidden, 1, name="conv1")(self.norm_act(x, train=train, name="norm1"))
        return self.conv(self.features, 3, name="conv2")(self.norm_act(y, train=train, name="norm2"))


@renamed(stage_sizes="depths")
class DenseNet(Encoder):
    """DenseNet, whose layers read all earlier results of their block; maps at 1/2, 1/4, 1/8, 1/16 and 1/32.

    As in segmentation_models_pytorch, the maps at 1/4, 1/8 and 1/16 are a block's result, normalised and activated,
    before the transition halves channels and sides. The last map is only normalised. Transitions round odd sides down,
    as in torch.

    Attributes:
        depths: layers in each block.
        width: channels of the stem.
        growth: channels that each layer adds.
        expansion: ratio of the hidden channels of a layer to the channels that it adds.
        coarsest: 8 builds no blocks beyond 1/8 of the image; 32 builds all.
        norm: factory of the normalisation, None for none.
        act: activation.
        remat: recomputes each layer in the backward pass. Otherwise memory grows with the square of the number of
          layers in a block, because each layer normalises all earlier results.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = DenseNet(depths=(2, 2, 2, 2))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 32, 33, 64), (1, 16, 17, 128), (1, 8, 8, 128), (1, 4, 4, 128), (1, 2, 2, 128)]

    References:
        Huang et al., Densely connected convolutional networks, 2016. https://arxiv.org/abs/1608.06993 (table 1)
    """

    depths: Sequence[int]
    width: int = 64
    growth: int = 32
    expansion: int = 4
    coarsest: int = 32
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    remat: bool = False
    # torchvision's
    kernel_init: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem = "conv0"

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(2**level for level in range(1, len(self.depths) + 2))

    @property
    def min_size(self) -> int:
        """The smallest image side that can be pooled by all transitions."""
        # The stem and the first pooling round up, the others down.
        return max(1, self.reductions[-1] - 3)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, use_bias=self.norm is None, kernel_init=self.kernel_init, **dtypes)
        activated = partial(_norm_act, self.norm, self.act, **dtypes)
        x = conv(self.width, 7, 2, name="conv0")(images)
        x = activated(x, train=train, name="norm0")
        maps = [x]
        for stage, size in enumerate(self.depths[: len(self.reductions) - 1], start=1):
            if stage == 1:
                x = max_pool(x, 3, 2, 1)
            else:
                x = conv(x.shape[-1] // 2, 1, name=f"transition{stage - 1}_conv")(x)
                x = avg_pool(x)
            for index in range(1, size + 1):
                layer = DenseLayer(
                    self.growth,
                    self.expansion * self.growth,
                    conv=conv,
                    norm_act=activated,
                    name=f"denseblock{stage}_denselayer{index}",
                )
                x = jnp.concatenate([x, run_block(layer, x, train=train, remat=self.remat)], axis=-1)
            if stage < len(self.depths):
                x = activated(x, train=train, name=f"transition{stage}_norm")
            elif self.norm is not None:
                x = norm_act(self.norm, None, x, train=train, name=f"norm{stage + 1}", **dtypes)
            maps.append(x)
        return self.pyramid(images, maps)

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision and timm."""

        def rules(dot: str, between: str) -> list[Rule]:
            return [
                Rule(r"(conv0|norm\d)", rf"features{dot}\1"),
                Rule(r"(transition\d)_(conv|norm)", rf"features{dot}\1.\2"),
                Rule(r"(denseblock\d)_(denselayer\d+)/(conv|norm)(\d)", rf"features{dot}\1.\2.\3{between}\4"),
            ]

        first = len(self.reductions)  # first block that a smaller `coarsest` omits
        deeper = rf"features[._](denseblock[{first}-9]|transition[{first}-9]|transition{first - 1}\.conv|norm5)\..*"
        # torchvision's published files have older names; timm's `features_only` flattens lists of modules.
        forms = ((".", ""), (".", "."), ("_", ""))
        return [naming for form in forms for naming in ignoring(backbone(rules(*form)), deeper)]


# Huang et al. 2016, table 1; 161, which is wider, is the authors' (their repository)
register_encoders(
    {
        "densenet121": partial(DenseNet, depths=(6, 12, 24, 16)),
        "densenet161": partial(DenseNet, depths=(6, 12, 36, 24), width=96, growth=48),
        "densenet169": partial(DenseNet, depths=(6, 12, 32, 32)),
        "densenet201": partial(DenseNet, depths=(6, 12, 48, 32)),
    }
)
