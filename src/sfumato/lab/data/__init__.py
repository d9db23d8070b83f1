"""Where pictures come from: any `datasets` source, decoded once into uint8 tensors in memory, or streamed."""

from sfumato.data.augment import Augmentation, augment
from sfumato.data.images import ImageSet, load_images, load_train_test
from sfumato.data.stream import Stream, load_stream

__all__ = ["Augmentation", "ImageSet", "Stream", "augment", "load_images", "load_stream", "load_train_test"]
