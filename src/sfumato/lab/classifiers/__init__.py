"""Where frozen classifiers come from: bundles, and whatever else people have, made into bundles."""

from sfumato.lab.classifiers.frozen import FrozenClassifier, load_classifier, trains_through
from sfumato.lab.classifiers.importer import adopt, classifier_bundle
from sfumato.lab.classifiers.sources import Stated

__all__ = ["FrozenClassifier", "Stated", "adopt", "classifier_bundle", "load_classifier", "trains_through"]
