"""What the tests in a browser share: a headless Chromium, and the page at work in it."""

from __future__ import annotations

import base64
import io
import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    # Whatever asks for another host gets no response, and is noted by the page's own list of requests.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
PATIENCE_MS = 60_000  # a busy machine is slow, and then nothing is wrong


def open_page(browser: Any, url: str, *, before: str = "", ready: bool = True, **context: Any) -> tuple[Any, list[str]]:
    """A page in a profile of its own, and the list of addresses that it asks for, which grows."""
    page = browser.new_context(**context).new_page()
    page.set_default_timeout(PATIENCE_MS)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    if before:
        page.add_init_script(before)
    page.goto(url)
    if ready:
        page.locator("#status", has_text="also offline").wait_for()
    return page, asked


def module(page: Any, code: str, argument: Any = None) -> Any:
    """Runs JavaScript with the module as `sfumato` and ONNX Runtime Web as `ort`; `argument` is called `given`."""
    head = 'const sfumato = await import("/js/sfumato.js"); const { ort } = await import("/page/models.js");'
    return page.evaluate(f"async (given) => {{ {head} {READ_WRITE} {code} }}", argument)


READ_WRITE = """
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const text = (array) => {
  const view = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let all = "";
  for (let i = 0; i < view.length; i += 32768) all += String.fromCharCode(...view.subarray(i, i + 32768));
  return btoa(all);
};
const image = ({ width, height, data }) => ({ width, height, data: bytes(data) });
const kind = async (work) => {
  try { await work(); } catch (error) { return error.name + ": " + error.message; }
  return "nothing";
};
"""


def rgb(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Pixels (H, W, 3) as `image` takes them on the other side."""
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "data": base64.b64encode(np.ascontiguousarray(pixels).tobytes()).decode(),
    }


def array(text: str, dtype: Any) -> NDArray[Any]:
    """What `text` made of a typed array."""
    return np.frombuffer(base64.b64decode(text), dtype)


def png(pixels: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def drop(page: Any, content: bytes, name: str = "mine.png", kind: str = "image/png") -> None:
    """Drops a file onto the page, as a person does."""
    page.evaluate(
        """({ content, name, kind }) => {
          const transfer = new DataTransfer();
          const file = new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type: kind });
          transfer.items.add(file);
          const event = new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true });
          document.getElementById("drop").dispatchEvent(event);
        }""",
        {"content": base64.b64encode(content).decode(), "name": name, "kind": kind},
    )


def photo(seed: int = 0, height: int = 150, width: int = 220) -> NDArray[np.uint8]:
    """An image in which no piece repeats: smooth shapes under grain."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    shapes = [np.sin(rows / rng.uniform(9, 30)) * np.cos(columns / rng.uniform(9, 30)) for _ in range(3)]
    return (128 + 80 * np.stack(shapes, -1) + rng.normal(0, 12, (height, width, 3))).clip(0, 255).astype(np.uint8)
