"""Optional dependencies, and the extra of densezoo that installs each."""

import importlib
from typing import Any

EXTRAS = {
    "data": {"grain": "grain", "skimage": "scikit-image", "sklearn": "scikit-learn", "tifffile": "tifffile"},
    "cli": {"rich": "rich", "tyro": "tyro"},
    "detection": {"hotcoco": "hotcoco"},
    "export": {"flatbuffers": "flatbuffers"},
    "onnx": {"onnx": "onnx", "onnxruntime": "onnxruntime"},
    "hub": {"huggingface_hub": "huggingface_hub"},
    "tensorboard": {"tensorboardX": "tensorboardX"},
}
"""For each extra: the modules that it installs, and the packages that contain them."""


def require(module: str, *, instead: str = "") -> Any:
    """Imports a module of an extra.

    Args:
        module: name of the module, such as `grain` or `sklearn.datasets`.
        instead: an alternative for the user, for the message.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: if it is not installed. The message has the command that installs it.

    Example:
        >>> require("tifffile").__name__
        'tifffile'
    """
    top = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != top:
            raise  # the package is installed, but one of its own dependencies is missing
        extra, package = next((extra, modules[top]) for extra, modules in EXTRAS.items() if top in modules)
        message = f'this needs {package}, which is not installed: pip install "densezoo[{extra}]"'
        raise ModuleNotFoundError(f"{message}; {instead}" if instead else message, name=error.name) from error
