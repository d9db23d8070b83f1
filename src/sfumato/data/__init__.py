"""Where pictures come from: any `datasets` source, decoded once into uint8 tensors in memory."""

from sfumato.data.augment import Augmentation, augment
from sfumato.data.images import ImageSet, load_images, load_train_test

__all__ = ["Augmentation", "ImageSet", "augment", "load_images", "load_train_test"]
