"""Classify an image through the cloud without showing it.

    python examples/classify_an_image.py                      # a shipped image, a server in this process
    python examples/classify_an_image.py cat.jpg --server https://classify.example.org

Needs `pip install 'sfumato[serve]'`; seconds.
"""

import argparse
import contextlib

from sfumato.artifacts import shipped
from sfumato.cloud import catalogue_of, running
from sfumato.device import Client

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("image", nargs="?", help="Default: a CIFAR-10 test image.")
parser.add_argument("--server", help="Default: serve the shipped classifier in this process.")
arguments = parser.parse_args()
image = arguments.image or shipped.samples()[0].pixels

with contextlib.ExitStack() as stack:
    server = arguments.server or stack.enter_context(running(catalogue_of([shipped.classifier_bundle()])))
    # `gate=False` sends the payload even where the device's own prediction is confident enough.
    client = stack.enter_context(Client(server, shipped.obfuscator_bundle(), gate=False))
    prediction = client.classify(image)
    print(f"{prediction.label} ({prediction.probability:.0%}), {prediction.payload_bytes} bytes sent")
