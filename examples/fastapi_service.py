"""A small service on the device: upload an image, get its label. The image never leaves the device.

    export SFUMATO_SERVER=https://classify.example.org SFUMATO_BUNDLE=bundle/
    uvicorn --app-dir examples fastapi_service:app
    curl --data-binary @cat.jpg http://127.0.0.1:8000/classify

Needs `pip install 'sfumato[async]' fastapi uvicorn`; runs until Ctrl-C. It listens to this machine alone: whoever may
upload to it may use the classifier in the cloud.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from sfumato.artifacts import shipped
from sfumato.device import AsyncClient
from sfumato.errors import BundleError, EndpointError, ImageError

MAX_IMAGE_BYTES = 20 * 2**20


class Label(BaseModel):
    """The service's response."""

    label: str
    probability: float
    predicted_by: str  # "device" if nothing was sent
    payload_bytes: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep one client for all requests: it reuses its connections, and limits how many images are in progress."""
    bundle = os.environ.get("SFUMATO_BUNDLE") or shipped.obfuscator_bundle()
    async with AsyncClient(os.environ["SFUMATO_SERVER"], bundle, timeout_s=10) as client:
        app.state.client = client
        yield


app = FastAPI(title="Classify an image", lifespan=lifespan)


@app.post("/classify")
async def classify(request: Request) -> Label:
    """Classify the image file that is the request's body."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_IMAGE_BYTES:
            raise HTTPException(413, f"an image may have {MAX_IMAGE_BYTES} bytes")
    client: AsyncClient = request.app.state.client
    try:
        found = await client.classify(bytes(content))
    except ImageError as error:
        raise HTTPException(422, str(error)) from error
    except EndpointError as error:  # the server is down or misbehaves: the image was not sent in its place
        raise HTTPException(503, str(error)) from error
    except BundleError as error:  # the obfuscator did not hide this image: nothing was sent
        raise HTTPException(500, str(error)) from error
    return Label(
        label=found.label,
        probability=found.probability,
        predicted_by=found.predicted_by,
        payload_bytes=found.payload_bytes,
    )
