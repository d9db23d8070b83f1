"""Images and their labels: any `datasets` source, decoded once into uint8 tensors in memory, or streamed."""

from sfumato.lab.data.augment import Augmentation, augment
from sfumato.lab.data.image_set import INFERENCE_BATCH, ImageSet
from sfumato.lab.data.images import load_images, load_train_test
from sfumato.lab.data.stream import Stream, load_stream

__all__ = [
    "INFERENCE_BATCH",
    "Augmentation",
    "ImageSet",
    "Stream",
    "augment",
    "load_images",
    "load_stream",
    "load_train_test",
]
