"""Autoencoders: an encoder and a decoder of the zoo without skips, around a small map of latents."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, Conv, Nearest, NoSkip
from densezoo.blueprint import Blueprint, register
from densezoo.decoders import UNetDecoder
from densezoo.decoders.steps import one_scale
from densezoo.decoders.unet import mirrored
from densezoo.encoders import Encoder
from densezoo.heads import SegmentationHead
from densezoo.models.segmentation import computed_by, encode, without_gradient
from densezoo.types import Dtype, ModuleDef, Pyramid, Size, size_of


@struct.dataclass
class Reconstruction:
    """The output of an autoencoder.

    Attributes:
        images: the reconstructed images.
        latents: the map that the images were reconstructed from: the mean, or in training of a VAE a random sample.
        mean: mean of the latents.
        log_variance: logarithm of their variance; None for an autoencoder that is not variational.
    """

    images: Float[Array, "b h w c"]
    latents: Float[Array, "b _ _ d"]
    mean: Float[Array, "b _ _ d"]
    log_variance: Float[Array, "b _ _ d"] | None = None


class Autoencoder(nn.Module):
    """An encoder, a bottleneck of few channels, and a decoder without skips: images -> `Reconstruction`.

    `method="encode"` returns the mean and the logarithm of the variance of the latents, and `method="decode"` takes
    latents and returns images.

    Attributes:
        encoder: images -> Pyramid; only its coarsest map is used.
        to_latents: the coarsest map -> latents, or mean and logarithm of the variance.
        from_latents: latents -> the input of the decoder.
        decoder: Pyramid -> map; it must not use the finer maps, such as a `UNetDecoder` with `NoSkip`.
        head: (map, size) -> images.
        variational: whether it is a VAE, whose latents are random in training (with the stream "dropout").
        frozen: as in `SegmentationModel`.
        impl: as in `SegmentationModel`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("autoencoder", dz.PlainEncoder((8, 16, 16)), num_classes=1, latent_features=2)
        >>> images = jnp.zeros((1, 13, 16, 1))
        >>> variables = model.init(jax.random.key(0), images)
        >>> found = model.apply(variables, images)
        >>> found.images.shape, found.latents.shape
        ((1, 13, 16, 1), (1, 3, 4, 2))
        >>> model.apply(variables, found.latents, method="decode").shape
        (1, 12, 16, 1)

    References:
        Kingma and Welling, Auto-encoding variational Bayes, 2013. https://arxiv.org/abs/1312.6114
    """

    encoder: nn.Module
    to_latents: nn.Module
    from_latents: nn.Module
    decoder: nn.Module
    head: nn.Module
    variational: bool = False
    frozen: tuple[str, ...] = ()
    impl: str = "auto"

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Reconstruction:
        mean, log_variance = self.encode(images, train=train)
        latents = mean
        if train and log_variance is not None:
            noise = jax.random.normal(self.make_rng("dropout"), mean.shape, mean.dtype)
            latents = mean + jnp.exp(0.5 * log_variance) * noise
        restored = self.decode(latents, size_of(images), train=train)
        return Reconstruction(restored, latents, mean, log_variance)

    def encode(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> tuple[Float[Array, "b _ _ d"], Float[Array, "b _ _ d"] | None]:
        """The mean of the latents, and the logarithm of their variance if the model is variational."""
        with computed_by(self):
            pyramid = encode(self.encoder, images, train=train and "encoder" not in self.frozen)
            pyramid = without_gradient(pyramid) if "encoder" in self.frozen else pyramid
            moments = self.to_latents(pyramid.maps[-1])
        if not self.variational:
            return moments, None
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30, 20)  # exp stays finite

    def decode(
        self, latents: Float[Array, "b h w d"], size: Size | None = None, *, train: bool = False
    ) -> Float[Array, "b _ _ c"]:
        """Images from latents.

        Args:
            latents: a map of latents.
            size: height and width of the images; None multiplies the latents' by the encoder's reduction.
            train: whether to run in training mode.
        """
        if not isinstance(self.encoder, Encoder):
            raise TypeError("an autoencoder needs a dz.Encoder, which publishes the reductions of its maps")
        *finer, coarsest = self.encoder.reductions
        size = (latents.shape[1] * coarsest, latents.shape[2] * coarsest) if size is None else size
        height, width = (max(side, self.encoder.min_size) for side in size)  # to which `encode` enlarges images
        with computed_by(self):
            x = self.from_latents(latents)
            # The decoder takes the sizes of these maps, and nothing else.
            maps = [jnp.zeros((x.shape[0], -(-height // scale), -(-width // scale), 1), x.dtype) for scale in finer]
            pyramid = Pyramid((*maps, x), None, self.encoder.reductions, (height, width))
            x = self.decoder(pyramid, train=train and "decoder" not in self.frozen)
            return self.head(x, (height, width))[:, : size[0], : size[1]]


def autoencoder(
    encoder: Any,
    num_classes: int,
    *,
    variational: bool = False,
    latent_features: int = 4,
    features: Sequence[int] | None = None,
    upsample: ModuleDef = Nearest,
    norm: ModuleDef | None = BatchNorm,
    act: Callable[[jax.Array], jax.Array] = nn.relu,
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
) -> Autoencoder:
    """Composes an autoencoder.

    Args:
        encoder: the encoder.
        num_classes: channels of the images.
        variational: whether it is a VAE.
        latent_features: channels of the latents.
        features: see `UNetDecoder`.
        upsample: see `UNetDecoder`.
        norm: normalisation of the decoder; see `UNetDecoder`.
        act: activation of the decoder.
        impl: see `SegmentationModel`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    fields = mirrored(encoder) if features is None else {"features": tuple(features)}
    widest = (fields.get("features") or (256,))[0]
    return Autoencoder(
        encoder=encoder,
        to_latents=Conv((1 + variational) * latent_features, 1, **dtypes),
        from_latents=Conv(widest, 1, **dtypes),
        decoder=UNetDecoder(skip=NoSkip, upsample=upsample, norm=norm, act=act, **fields, **dtypes),
        head=SegmentationHead(num_classes, **dtypes),
        variational=variational,
        impl=impl,
    )


for _name, _variational in (("autoencoder", False), ("vae", True)):
    register(
        Blueprint(
            name=_name,
            description=(
                "An autoencoder whose few latents are normally distributed, so that random latents give images."
                if _variational
                else "An encoder and a decoder around a map of few channels, trained to return its input."
            ),
            skip_strategy="none, so that everything passes through the latents",
            excels_at="latents for other models, such as diffusion" if _variational else "compression, outliers",
            paper=(
                "Kingma and Welling 2013, https://arxiv.org/abs/1312.6114"
                if _variational
                else "Hinton and Salakhutdinov 2006, https://doi.org/10.1126/science.1127647"
            ),
            encoder="plain",
            make=partial(autoencoder, variational=True) if _variational else autoencoder,
            task="autoencoding",
            num_classes=3,
            misfit=one_scale,
        )
    )
