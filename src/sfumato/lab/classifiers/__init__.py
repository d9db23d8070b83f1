"""Load frozen classifiers from bundles, and import classifiers from elsewhere as bundles."""

from sfumato.lab.classifiers.frozen import FrozenClassifier, load_classifier, trains_through
from sfumato.lab.classifiers.imported import Metadata, read_class_map
from sfumato.lab.classifiers.importer import classifier_bundle, import_classifier

__all__ = [
    "FrozenClassifier",
    "Metadata",
    "classifier_bundle",
    "import_classifier",
    "load_classifier",
    "read_class_map",
    "trains_through",
]
