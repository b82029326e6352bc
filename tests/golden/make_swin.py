"""Golden outputs of Swin. Needs timm 1.0.31 and torch: python tests/golden/make_swin.py."""

import timm
import torch
from reference import write_encoder
from timm.models.swin_transformer import checkpoint_filter_fn

TINY = "swin_tiny_patch4_window7_224"


class BuiltForItsImages(torch.nn.Module):
    """Weights of the model for 224x224 pixels, adapted by timm to the model for the given image size."""

    def __init__(self, **fields):
        super().__init__()
        self.model = timm.create_model(TINY, features_only=True, **fields)
        self.fields = fields

    def forward(self, images):
        model = timm.create_model(TINY, features_only=True, img_size=tuple(images.shape[2:]), **self.fields)
        model.load_state_dict(checkpoint_filter_fn(self.model.state_dict(), model))
        return channels_first(model.eval()(images))


class BuiltForOthers(torch.nn.Module):
    """The model for images of one size, applied to others."""

    def __init__(self, **fields):
        super().__init__()
        self.model = timm.create_model(TINY, features_only=True, dynamic_img_size=True, **fields)

    def forward(self, images):
        return channels_first(self.model(images))


def channels_first(features):
    return [x.permute(0, 3, 1, 2) for x in features]


if __name__ == "__main__":
    theirs = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8)}
    # Its maps are 16x24, 8x12, 4x6 and 2x3: some larger than a window and some smaller.
    write_encoder("timm_swin", BuiltForItsImages(**theirs), (1, 65, 98, 3), TINY, quick=True, **theirs)
    # 32x25, 16x13, 8x7 and 4x4: with windows of 3 they shift in all stages, and none divides evenly.
    model = BuiltForItsImages(window_size=3, in_chans=1, **theirs)
    write_encoder("timm_swin_window3", model, (1, 130, 100, 1), TINY, window_size=3, **theirs)
    write_encoder("timm_swin_tiny", BuiltForItsImages(), (2, 64, 96, 3), TINY)
    write_encoder("timm_swin_for_224", BuiltForOthers(**theirs), (1, 64, 96, 3), TINY, image_size=(224, 224), **theirs)
    model = BuiltForOthers(img_size=(64, 96), **theirs)
    write_encoder("timm_swin_for_64_96", model, (1, 96, 64, 3), TINY, image_size=(64, 96), **theirs)
