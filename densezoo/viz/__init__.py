"""Pictures: architectures, feature maps, predictions, training curves.

Every function returns a matplotlib figure or an array. It shows nothing and does not use pyplot. `import densezoo`
does not import this package, nor matplotlib: write `from densezoo import viz`.
"""

from densezoo.viz.boundaries import boundaries
from densezoo.viz.changes import changes
from densezoo.viz.colors import colorize, overlay, palette, to_rgb
from densezoo.viz.confusion import confusion_matrix
from densezoo.viz.curves import training_curves
from densezoo.viz.detections import detections
from densezoo.viz.diagrams import diagram
from densezoo.viz.features import feature_maps
from densezoo.viz.figures import save
from densezoo.viz.masks import predictions
from densezoo.viz.panoptic import panoptic
from densezoo.viz.pictures import save_image, save_mask
from densezoo.viz.receptive import receptive_fields
from densezoo.viz.spectrum import lattice_energy, power_spectrum, spectra
from densezoo.viz.structure import Architecture, Box, Head, Link, architecture

__all__ = [
    "Architecture",
    "Box",
    "Head",
    "Link",
    "architecture",
    "boundaries",
    "changes",
    "colorize",
    "confusion_matrix",
    "detections",
    "diagram",
    "feature_maps",
    "lattice_energy",
    "overlay",
    "palette",
    "panoptic",
    "power_spectrum",
    "predictions",
    "receptive_fields",
    "save",
    "save_image",
    "save_mask",
    "spectra",
    "to_rgb",
    "training_curves",
]
