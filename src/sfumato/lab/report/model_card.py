"""Renders what is known of a bundle as a model card: a README.md, with metadata by which the hub shows the figures."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from typing import Any

from jinja2 import Environment

from sfumato.artifacts.bundle import DECODER_ONNX, OBFUSCATOR_ONNX, Bundle
from sfumato.artifacts.records import without_local_places
from sfumato.errors import AuditError
from sfumato.lab.attacks.extraction import memorises
from sfumato.lab.audit.membership import MembershipResult
from sfumato.lab.audit.schema import AuditSummary, recorded
from sfumato.lab.audit.verdict import decimals, percent
from sfumato.lab.data.cifar10 import HUB_ID

_ON_THE_HUB = {"cifar10": HUB_ID}
_ACCURACIES = {
    "accuracy_plain": "plain images",
    "accuracy_obfuscated": "obfuscated images, all sent",
    "accuracy_gated": "with the gate: on-device and cloud predictions",
    "accuracy_device": "on-device predictions alone",
}
_LEAKAGE = {"mse": "MSE", "psnr_db": "PSNR, dB", "ssim": "SSIM", "excess_leakage": "excess leakage, at least"}


def model_card(
    bundle: Bundle,
    repository: str,
    *,
    licence: str | None = None,
    data_licence: str | None = None,
    membership: MembershipResult | None = None,
) -> str:
    """Return a bundle's model card, written from its figures, its audit, its recipe and its provenance.

    What was not measured is said to be so. Of absolute paths only the last part is left.

    Args:
        bundle: of an obfuscator or a classifier.
        repository: where it will be on the hub, owner/name.
        licence: of the files, by the hub's identifier, such as `apache-2.0`.
        data_licence: of the training data, in words.
        membership: what `sfumato audit --membership` found of the bundle.

    Raises:
        BundleError: the bundle is multi-label.
        AuditError: the bundle's audit is broken, or `membership` is of another bundle.
        ModuleNotFoundError: `huggingface_hub` is not installed.
    """
    bundle.check_single_label("a model card")
    if membership and membership.files.get(OBFUSCATOR_ONNX) != bundle.files.get(OBFUSCATOR_ONNX):
        raise AuditError(f"the membership inference is of another bundle ({membership.obfuscator}) than {bundle.path}")
    audit = recorded(bundle)
    figures = bundle.figures.to_json()
    recipe = bundle.recipe.without_local_places().to_json()
    environment = Environment(trim_blocks=True, lstrip_blocks=True)  # Markdown: nothing to escape
    environment.filters |= {"percent": percent, "decimals": decimals, "cell": _cell}
    environment.tests["memorising"] = memorises
    source = files("sfumato.lab.report").joinpath("model_card.md.j2").read_text(encoding="utf-8")
    text = environment.from_string(source).render(
        bundle=bundle,
        name=_name(bundle),
        repository=repository,
        obfuscator=bundle.kind == "obfuscator",
        size=bundle.preprocessing,
        payloads=payload_bytes(bundle),
        accuracies={title: figures[key] for key, title in _ACCURACIES.items() if key in figures},
        test_images=bundle.figures.test_images or 0,
        offload_rate=bundle.figures.offload_rate,
        audit=audit,
        membership=membership,
        licence=licence,
        data_licence=data_licence,
        data=_data(bundle),
        facts=bundle.provenance,
        recipe=json.dumps(recipe, indent=1, ensure_ascii=False),
    )
    return f"---\n{_metadata(bundle, audit, licence)}\n---\n\n{_without_gaps(text)}"


def payload_bytes(bundle: Bundle) -> dict[str, int]:
    """Return how many bytes of payload an obfuscator makes of one image, without the message around it.

    Returns:
        In which form -> bytes.
    """
    if bundle.kind != "obfuscator":
        return {}
    values = 3 * bundle.preprocessing.height * bundle.preprocessing.width
    found = {"in float32": 4 * values}
    if bundle.recipe.eight_bit_output:
        found["in 8 bits"] = values
    if DECODER_ONNX in bundle.files and bundle.recipe.code_bits:
        found["as a code (`--split`)"] = -(-bundle.recipe.code_bits // 8)
    return {**found, "for comparison, the plain image's pixels": values}


def _metadata(bundle: Bundle, audit: AuditSummary | None, licence: str | None) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    data, name = _data(bundle), _name(bundle)
    figures = bundle.figures.to_json()
    of: dict[str, Any] = {
        "dataset_type": _ON_THE_HUB.get(data or "", data or "imagefolder"),
        "dataset_name": data or "not stated",
        "dataset_split": "test",
    }
    results = [
        EvalResult(
            task_type="image-classification",
            metric_type="accuracy",
            metric_name=f"accuracy, {title}",
            metric_value=figures[key],
            **of,
        )
        for key, title in _ACCURACIES.items()
        if key in figures
    ]
    if audit and audit.best:
        results += [
            EvalResult(
                task_type="image-to-image",
                task_name=f"reconstruction by an attacker ({audit.verdict.finding})",
                metric_type=key.removesuffix("_db"),
                metric_name=title,
                metric_value=getattr(audit.best, key),
                **of,
            )
            for key, title in _LEAKAGE.items()
            if math.isfinite(getattr(audit.best, key))  # the PSNR of a copy is not
        ]
    card = ModelCardData(
        license=licence,
        library_name="sfumato",
        pipeline_tag="image-to-image" if bundle.kind == "obfuscator" else "image-classification",
        datasets=[_ON_THE_HUB[data]] if data in _ON_THE_HUB else None,
        tags=["sfumato", bundle.kind, "privacy", "onnx"],
        model_name=name,
        eval_results=results or None,
    )
    return str(card.to_yaml()).strip()


def _data(bundle: Bundle) -> str | None:
    """The data set's name, without the folder that it lies in."""
    recipe = bundle.recipe.data
    source = bundle.provenance.data or (recipe if isinstance(recipe, str) else (recipe or {}).get("source"))
    return None if source is None else str(without_local_places(str(source)))


def _name(bundle: Bundle) -> str:
    return str(bundle.recipe.name or bundle.recipe.method or bundle.name)


def _cell(value: object) -> str:
    """Text that stays in one cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _without_gaps(text: str) -> str:
    """Without more than one empty line in a row."""
    lines: list[str] = []
    for line in text.strip().splitlines():
        if line.strip() or (lines and lines[-1]):
            lines.append(line.rstrip())
    return "\n".join(lines) + "\n"
