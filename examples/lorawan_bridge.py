"""Classify images over LoRaWAN: the device sends a code of one byte per image, a bridge asks the classifier.

The device computes the code with the split form of a sketch. The network server (The Things Stack or ChirpStack) hands
each uplink to the bridge as JSON. The bridge makes of it a request of the Open Inference Protocol, to a server that was
started with `sfumato serve CLASSIFIER --decoder BUNDLE`.

    python examples/lorawan_bridge.py                                          # both halves, with shipped images
    python examples/lorawan_bridge.py --server http://127.0.0.1:8080 < uplink.json

Needs `pip install 'sfumato[serve]'`; seconds.
"""

import argparse
import base64
import contextlib
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import Bundle, split_name
from sfumato.artifacts.class_map import class_logits
from sfumato.cloud import catalogue_of, running
from sfumato.device import Obfuscator
from sfumato.device.image import ImageSource
from sfumato.device.predictions import softmax

# --- on the device: these bytes are the payload of an uplink, whatever radio stack sends it --------------------------


def payload_of(obfuscator: Obfuscator, image: ImageSource) -> bytes:
    """Return the code of an image; the obfuscator has `split=True`."""
    return obfuscator.obfuscate(image).tensor.tobytes()


# --- in the bridge ---------------------------------------------------------------------------------------------------


def payload_in(uplink: dict[str, Any]) -> bytes:
    """Return the payload of an uplink of The Things Stack v3 or ChirpStack v4; ValueError if there is none."""
    text = uplink.get("uplink_message", {}).get("frm_payload") or uplink.get("data")
    if not isinstance(text, str):
        raise ValueError("the uplink has no payload; expected uplink_message.frm_payload, or data")
    return base64.b64decode(text, validate=True)


def request_of(payload: bytes, model: dict[str, Any]) -> dict[str, Any]:
    """Return the request with an image's code, for a model with this metadata; ValueError if it takes other bytes."""
    (takes,) = model["inputs"]
    if (takes["datatype"], takes["shape"][1:]) != ("UINT8", [len(payload)]):
        raise ValueError(f"got {len(payload)} bytes; the model takes {takes['datatype']} of {takes['shape'][1:]}")
    code = {"name": takes["name"], "datatype": "UINT8", "shape": [1, len(payload)], "data": list(payload)}
    return {"inputs": [code]}


def classify(uplink: dict[str, Any], server: str, bundle: Bundle) -> tuple[str, float]:
    """Return the label and its probability."""
    url = f"{server}/v2/models/{split_name(bundle.name)}"
    with urllib.request.urlopen(url, timeout=10) as response:
        model = json.load(response)
    body = json.dumps(request_of(payload_in(uplink), model)).encode()
    request = urllib.request.Request(f"{url}/infer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        (output,) = json.load(response)["outputs"]
    probabilities = softmax(class_logits(np.array([output["data"]]), bundle.class_map))[0]
    best = int(probabilities.argmax())
    return bundle.labels[best], float(probabilities[best])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", help="Default: serve the shipped classifier in this process.")
    parser.add_argument("--bundle", type=Path, default=shipped.obfuscator_bundle(), help="Default: the shipped sketch.")
    arguments = parser.parse_args()
    sketch = Bundle.load(arguments.bundle)
    with contextlib.ExitStack() as stack:
        if arguments.server:
            server, uplinks = arguments.server, [json.load(sys.stdin)]
        else:
            server = stack.enter_context(running(catalogue_of([shipped.classifier_bundle()], decoder=sketch.path)))
            device = Obfuscator(sketch, split=True)
            payloads = [payload_of(device, sample.pixels) for sample in shipped.samples()[:5]]
            uplinks = [{"uplink_message": {"frm_payload": base64.b64encode(p).decode()}} for p in payloads]
        for uplink in uplinks:
            label, probability = classify(uplink, server, sketch)
            print(f"{payload_in(uplink).hex()}: {label} ({probability:.0%})")
