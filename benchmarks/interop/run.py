"""Test our client against other servers, and another client against ours.

`python benchmarks/interop/run.py triton kserve` tries these two again, and keeps what was found of the others.

`make interop` sets the environments up and runs this; it writes results/interop.json and docs/interop.md. Each server
serves the shipped classifier; all the shipped images are sent to it through both shipped obfuscators. Predictions are
compared with ONNX Runtime's own in this process. What is sent passes a relay, and is searched for the images.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import conformance
import foreign
import numpy as np
import numpy.typing as npt
import page
import typer
from PIL import Image
from relay import relayed
from servers import ENVIRONMENTS, HALF, NAME, SERVERS, Served

from sfumato.artifacts import shipped
from sfumato.artifacts.bundle import CLASSIFIER_ONNX, Bundle, split_name
from sfumato.artifacts.files import write_json
from sfumato.artifacts.onnx_file import OnnxFunction
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.provenance import provenance
from sfumato.device import Client, Obfuscator
from sfumato.device.predictions import softmax
from sfumato.errors import SfumatoError

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))
from recording import traces

TOLERANCE = 1e-5
TOLERANCE_FP16 = 2e-2
BATCH = 16
LEAST_DISTINCT_BYTES = 6
TRANSPORTS = {
    "HTTP, binary": {"encoding": "binary"},
    "HTTP, JSON": {"encoding": "json"},
    "HTTP, as the client chooses": {},
    "gRPC": {},
}
BUNDLES = {"sketch": shipped.obfuscator_bundle, "the paper's": shipped.papers_obfuscator_bundle}


def main(
    only: tuple[str, ...] = (), out: Path = Path("results/interop.json"), text: Path = Path("docs/interop.md")
) -> None:
    """Run all servers, or those named together with earlier results of the others; write the results."""
    before = {entry["server"]: entry for entry in json.loads(out.read_text())["servers"]} if only else {}
    found = [before[key] if only and key not in only else _tried(key) for key in SERVERS]
    result = {
        "what": "the shipped classifier served by several servers, asked by our client over each transport",
        "images": len(shipped.samples()),
        "tolerance": TOLERANCE,
        "tolerance_fp16": TOLERANCE_FP16,
        "servers": found,
    }
    write_json(out, result)
    text.write_text(page.written(result), encoding="utf-8")
    print(f"-> {out}, {text}")


def _tried(key: str) -> dict[str, Any]:
    server = SERVERS[key]
    print(f"{server.title} ...", flush=True)
    entry: dict[str, Any] = {"server": key, "title": server.title, "versions": server.versions()}
    with tempfile.TemporaryDirectory() as folder, server.start(Path(folder).resolve()) as served:
        entry["extensions"] = server.extensions(served)
        entry["cells"] = []
        for cell in _cells(served, Path(folder)):
            entry["cells"].append(cell)
            print(f"  {cell['transport']}, {cell['what']}: {'good' if cell['good'] else cell['why']}", flush=True)
        if key == "sfumato":
            entry["foreign_client"] = foreign.asked(served.http)
            entry["conformance"] = conformance.checked(served.http, ENVIRONMENTS.absolute(), Path(folder))
    return {**entry, "measured": provenance().to_json()}


def _cells(served: Served, folder: Path) -> Iterator[dict[str, Any]]:
    images = folder / "images"
    images.mkdir()
    for sample in shipped.samples():
        Image.fromarray(sample.pixels).save(images / f"{sample.name}.png")
    for transport, options in TRANSPORTS.items():
        url = served.grpc if transport == "gRPC" else served.http
        if url is None:
            yield _cell(transport, "client, sketch", False, "the server has no gRPC")
            continue
        for name in BUNDLES:
            yield _asked(transport, url, name, options)
        if transport == "HTTP, as the client chooses":
            continue
        if HALF in served.models:
            yield _asked(transport, url, "sketch", {**options, "model": HALF}, what="client, FP16")
        if split_name(NAME) in served.models:
            yield _asked(transport, url, "sketch", {**options, "split": True}, what="client, split form")
        stated = [f"--{name}={value}" for name, value in options.items()]
        yield _classified(transport, url, images, stated)
        yield _doctored(transport, url, stated)


def _cell(transport: str, what: str, good: bool, why: str = "", **facts: Any) -> dict[str, Any]:
    return {"transport": transport, "what": what, "good": good, "why": why, **facts}


def _asked(
    transport: str, url: str, bundle: str, options: dict[str, Any], *, what: str | None = None
) -> dict[str, Any]:
    """Check that the client's predictions agree and that no plain image is sent."""
    what = what or f"client, {bundle}"
    samples = shipped.samples()
    inputs, wanted = _wanted(bundle)
    try:
        with relayed(url) as (near, recorded, _):
            with Client(near, BUNDLES[bundle](), gate=False, retries=0, timeout_s=30, **options) as client:
                predictions = client.classify_batch([sample.pixels for sample in samples], batch_size=BATCH)
            sent = bytes(recorded)
    except SfumatoError as error:
        return _cell(transport, what, False, str(error).replace(near, _unnumbered(near)))
    farthest = float(np.abs(np.array([prediction.probabilities for prediction in predictions]) - wanted).max())
    allowed = TOLERANCE_FP16 if client.datatype == "FP16" else TOLERANCE
    leaks = _plain_images_in(sent, client.bundle.preprocessing)
    why = f"an image was sent as {', '.join(leaks)}" if leaks else ""
    if farthest > allowed:
        why = f"predictions differ by {farthest:.1e}; {allowed:.0e} is allowed"
    return _cell(
        transport, what, not why, why,
        datatype=client.datatype,
        encoding="gRPC" if transport == "gRPC" else "binary" if b"binary_data_size" in sent else "json",
        farthest=farthest,
        tolerance=allowed,
        payload_bytes=predictions[0].payload_bytes,
        plain_images_on_the_wire=leaks,
        # The relay sees what is sent: otherwise it could not see an image either.
        obfuscated_seen=_seen(inputs[0], sent) if client.datatype == "FP32" else None,
    )  # fmt: skip


def _seen(tensor: npt.NDArray[np.float32], sent: bytes) -> bool:
    first = tensor.ravel()[:16]
    return first.tobytes() in sent or json.dumps(first.tolist(), separators=(",", ":"))[1:-1].encode() in sent


def _plain_images_in(sent: bytes, preprocessing: Preprocessing) -> list[str]:
    """The forms in which a piece of one of the images is among the bytes; pieces of pure white tell nothing."""
    forms = _pieces(preprocessing)
    size = len(next(iter(forms)))
    found = {forms.get(sent[start : start + size], "") for start in range(len(sent) - size + 1)}
    return sorted(found - {""})


@cache
def _pieces(preprocessing: Preprocessing) -> dict[bytes, str]:
    return {
        piece: form
        for sample in shipped.samples()
        for form, pieces in traces(sample.pixels, preprocessing).items()
        for piece in pieces
        if len(set(piece)) >= LEAST_DISTINCT_BYTES
    }


def _classified(transport: str, url: str, images: Path, stated: list[str]) -> dict[str, Any]:
    found = _sfumato(url, "classify", str(images), "--always-send", *stated)
    if len(found.get("predictions", ())) != len(shipped.samples()):
        return _cell(transport, "sfumato classify", False, found["error"])
    _, wanted = _wanted("sketch")
    labels = Bundle.load(shipped.obfuscator_bundle()).labels
    right = [labels[index] for index in wanted.argmax(axis=1)]
    same = sum(answer["label"] == label for answer, label in zip(found["predictions"], right, strict=True))
    why = "" if same == len(right) else f"{same} of {len(right)} labels are ONNX Runtime's"
    return _cell(transport, "sfumato classify", not why, why, same_labels=same)


def _doctored(transport: str, url: str, stated: list[str]) -> dict[str, Any]:
    found = _sfumato(url, "doctor", "--classifier", str(shipped.classifier_bundle()), *stated)
    if "findings" not in found:
        return _cell(transport, "sfumato doctor", False, found["error"])
    bad = [
        finding["said"].replace(url, _unnumbered(url)) for finding in found["findings"] if finding["verdict"] == "bad"
    ]
    notes = [finding["check"] for finding in found["findings"] if finding["verdict"] == "note"]
    return _cell(transport, "sfumato doctor", found["ok"], "; ".join(bad), notes=notes)


def _unnumbered(url: str) -> str:
    """An address without the port, which is another one in every run."""
    return f"{url.partition('//')[0]}//server"


def _sfumato(url: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "sfumato", *arguments, "--server", url, "--timeout", "30", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = done.stdout.splitlines()
    found = dict(json.loads(lines[-1])) if lines else {}
    return {**found, "error": done.stderr.strip().removeprefix("error: ").replace(url, _unnumbered(url))}


@cache
def _wanted(bundle: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """The payload, and ONNX Runtime's own probabilities for it."""
    hidden = Obfuscator(BUNDLES[bundle]()).obfuscate_batch([sample.pixels for sample in shipped.samples()])
    inputs = np.stack([image.tensor for image in hidden])
    return inputs, softmax(OnnxFunction(shipped.classifier_bundle() / CLASSIFIER_ONNX)(inputs))


def command(
    servers: Annotated[list[str] | None, typer.Argument(help=f"Of {', '.join(SERVERS)}; default: all.")] = None,
) -> None:
    """Test the client against all servers, or those named together with earlier results of the others."""
    if unknown := set(servers or ()) - set(SERVERS):
        raise typer.BadParameter(f"unknown server {', '.join(sorted(unknown))}; known: {', '.join(SERVERS)}")
    main(tuple(servers or ()))


if __name__ == "__main__":
    typer.run(command)
