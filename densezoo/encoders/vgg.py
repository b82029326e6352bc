"""VGG with and without batch norm, with torchvision's layout and names, and the pooling indices for SegNet."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, Conv, he_normal_fan_out, norm_act
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import Naming, Rule, backbone, ignoring
from densezoo.ops import max_pool_with_indices
from densezoo.types import Dtype, ModuleDef, Pyramid


@renamed(stage_sizes="depths")
class VGG(Encoder):
    """Stages of 3x3 convolutions, each followed by 2x2 max-pooling; keeps the pooling indices.

    The maps are the results of the stages before their pooling, and the last pooled map. The first one has the image's
    size; it is omitted unless `full_resolution` is set, because segmentation_models_pytorch's decoders drop it (and
    their weights would not match otherwise). Pooling rounds odd sides down, as in torch.

    Attributes:
        depths: number of convolutions in each stage.
        widths: channels of each stage.
        full_resolution: whether to also return the map at the image's size, which gives a U-Net a skip there.
        coarsest: 8 builds no stages beyond 1/8 of the image, and does not pool the stage at 1/8; 32 builds all.
        norm: factory of the normalisation after every convolution, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = VGG(depths=(1, 1, 2, 2, 2))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 32, 32, 128), (1, 16, 16, 256), (1, 8, 8, 512), (1, 4, 4, 512), (1, 2, 2, 512)]

    References:
        Simonyan and Zisserman, Very deep convolutional networks, 2014. https://arxiv.org/abs/1409.1556 (table 1)
    """

    depths: Sequence[int]
    widths: Sequence[int] = (64, 128, 256, 512, 512)
    full_resolution: bool = False
    coarsest: int = 32
    norm: ModuleDef | None = None
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    pools = True
    stem = "features_0"

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(2**level for level in range(0 if self.full_resolution else 1, len(self.depths) + 1))

    @property
    def min_size(self) -> int:
        """The smallest image side that can be pooled by all stages."""
        return self.reductions[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        if len(self.depths) != len(self.widths):
            raise ValueError(f"depths and widths need one entry per stage; got {self.depths} and {self.widths}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x, maps, pool_indices = images, [], []
        position = 0  # in torchvision's flat list of layers, which determines the names
        # The last level has no convolutions.
        for level, (size, width) in enumerate(zip((*self.depths, 0), (*self.widths, 0), strict=True)):
            if 2**level > self.coarsest:
                break
            if level > 0:
                x, indices = max_pool_with_indices(x)
                position += 1
                pool_indices.append(indices)
            for _ in range(size):
                # torchvision keeps the bias even if a batch norm follows.
                x = Conv(width, kernel_init=he_normal_fan_out, name=f"features_{position}", **dtypes)(x)
                if self.norm is not None:
                    position += 1
                    x = norm_act(self.norm, self.act, x, train=train, name=f"features_{position}", **dtypes)
                else:
                    x = self.act(x)
                position += 2
            maps.append(x)
        return self.pyramid(images, maps if self.full_resolution else maps[1:], pool_indices)

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision and timm."""
        # timm's `features_only` flattens lists of modules: `features.0` becomes `features_0`.
        namings = [naming for dot in "._" for naming in backbone([Rule(r"features_(\d+)", rf"features{dot}\1")])]
        built = self.depths[: len(self.reductions) + (not self.full_resolution)]
        if len(built) == len(self.depths):
            return namings
        # Convolution, norm and activation, and a pooling after each stage.
        layers = sum(size * (2 if self.norm is None else 3) + 1 for size in built)
        deeper = "|".join(map(str, range(layers, 100)))
        return ignoring(namings, rf"features[._]({deeper})\..*")


# Simonyan and Zisserman 2014, table 1: A, B, D, E
_STAGES = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}

register_encoders({name: partial(VGG, depths=sizes) for name, sizes in _STAGES.items()})
# Daudt et al. 2018, figure 1: the encoder of all three networks, which have a dropout of 0.2 in addition
_FC_SIAM = partial(VGG, depths=(2, 2, 3, 3), widths=(16, 32, 64, 128), full_resolution=True, norm=BatchNorm)

register_encoders({"fc_siam": _FC_SIAM})
register_encoders({f"{name}_bn": partial(VGG, depths=sizes, norm=BatchNorm) for name, sizes in _STAGES.items()})
