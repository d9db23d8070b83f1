"""Predictions for an array of images, in one call: `predict` and `predict_proba` as in scikit-learn."""

from __future__ import annotations

import os
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import Bundle
from sfumato.device.client import Client
from sfumato.device.client_base import ClientOptions
from sfumato.errors import ImageError


def predict(
    images: NDArray[np.uint8], *, bundle: Bundle | str | os.PathLike[str], url: str, **options: Unpack[ClientOptions]
) -> NDArray[np.str_]:
    """Return the label of each image. See `predict_proba`.

    Returns:
        (N,) strings, of the bundle's labels.
    """
    probabilities, labels = _asked(images, bundle, url, options)
    found: NDArray[np.str_] = labels[probabilities.argmax(axis=1)]
    return found


def predict_proba(
    images: NDArray[np.uint8], *, bundle: Bundle | str | os.PathLike[str], url: str, **options: Unpack[ClientOptions]
) -> NDArray[np.float64]:
    """Return each class's probability for each image; only payloads are sent.

    Each call opens a client and closes it. For many calls, keep a `Client`.

    Args:
        images: (N, H, W, 3) uint8, RGB, or (N, H, W) uint8, grey, of any size.
        bundle: an obfuscator bundle, or its folder.
        url: the endpoint's address.
        options: those of `Client`.

    Returns:
        (N, classes) in [0, 1], rows sum to 1; the columns are in the order of the bundle's labels.

    Raises:
        ImageError: the array is not as described.
        BundleError: as with `Client` and `Client.classify_batch`.
        EndpointError: likewise.
    """
    return _asked(images, bundle, url, options)[0]


def _asked(images: Any, bundle: Any, url: str, options: ClientOptions) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    many = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim in (3, 4)
    if not many or (images.ndim == 3 and images.shape[2] in (3, 4)):  # the second is one image
        got = f"{images.shape} of {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ImageError(f"expected an array of images (N, H, W, 3), or (N, H, W) in grey, of uint8; got {got}")
    with Client(url, bundle, **options) as client:
        predictions = client.classify_batch(images)
        labels = np.array(client.bundle.labels)
    return np.array([one.probabilities for one in predictions]).reshape(len(images), len(labels)), labels
