"""Predictions for an array of images, in one call: `predict` and `predict_proba` as in scikit-learn."""

from __future__ import annotations

import os
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from sfumato.artifacts.bundle import Bundle
from sfumato.artifacts.labelling import PRESENT_FROM
from sfumato.device.client import Client
from sfumato.device.client_base import ClientOptions
from sfumato.errors import ImageError

Images = NDArray[np.uint8]
Where = Bundle | str | os.PathLike[str]


def predict(images: Images, *, bundle: Where, url: str | None, **options: Unpack[ClientOptions]) -> NDArray[Any]:
    """Return the label of each image, (N,) strings; of a multi-label bundle 0 or 1 by class, (N, classes) int64.

    See `predict_proba`.
    """
    with Client(url, bundle, **options) as client:
        rows = _rows(client, images)
        if client.bundle.multi_label:
            return (rows >= PRESENT_FROM).astype(np.int64)
        labels: NDArray[Any] = np.array(client.bundle.labels)[rows.argmax(axis=1)]
        return labels


def predict_proba(
    images: Images, *, bundle: Where, url: str | None, **options: Unpack[ClientOptions]
) -> NDArray[np.float64]:
    """Return each class's probability for each image; only payloads are sent.

    Each call opens a client and closes it. For many calls, keep a `Client`.

    Args:
        images: (N, H, W, 3) uint8, RGB, or (N, H, W) uint8, grey, of any size.
        bundle: an obfuscator bundle, or its folder.
        url: the endpoint's address; None for a classifier's bundle, which predicts on the device alone.
        options: those of `Client`.

    Returns:
        (N, classes) in [0, 1]; the columns are in the order of the bundle's labels. Rows sum to 1, unless the bundle is
        multi-label.

    Raises:
        ImageError: the array is not as described.
        BundleError: as with `Client` and `Client.classify_batch`.
        EndpointError: likewise.
    """
    with Client(url, bundle, **options) as client:
        return _rows(client, images)


def _rows(client: Client, images: Images) -> NDArray[np.float64]:
    many = isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim in (3, 4)
    if not many or (images.ndim == 3 and images.shape[2] in (3, 4)):  # the second is one image
        got = f"{images.shape} of {images.dtype}" if isinstance(images, np.ndarray) else type(images).__name__
        raise ImageError(f"expected an array of images (N, H, W, 3), or (N, H, W) in grey, of uint8; got {got}")
    rows = [prediction.probabilities for prediction in client.classify_batch(images)]
    return np.array(rows, np.float64).reshape(len(images), len(client.bundle.labels))
