"""Where images come from: any `datasets` source, decoded once into uint8 tensors in memory, or streamed."""

from sfumato.lab.data.augment import Augmentation, augment
from sfumato.lab.data.images import ImageSet, load_images, load_train_test
from sfumato.lab.data.stream import Stream, load_stream

__all__ = ["Augmentation", "ImageSet", "Stream", "augment", "load_images", "load_stream", "load_train_test"]
