"""Where frozen classifiers come from: bundles, and whatever else people have, made into bundles."""

from sfumato.classifiers.adopting import adopt, classifier_bundle
from sfumato.classifiers.frozen import FrozenClassifier, load_classifier, trains_through
from sfumato.classifiers.given import Stated

__all__ = ["FrozenClassifier", "Stated", "adopt", "classifier_bundle", "load_classifier", "trains_through"]
