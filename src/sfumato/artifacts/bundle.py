"""The bundle: the one artefact that flows between lab, device and cloud.

A bundle is a folder with a `bundle.json` and the files that it lists with their SHA-256. Training
writes it, evaluation extends it, the device loads it, the server serves the classifier kind of it.
This module needs neither torch nor ONNX Runtime. The schema is in `docs/schemas/bundle.json`. A publisher may sign the
manifest, and with it all files: see `sfumato.artifacts.signature`.

Two kinds exist:

* ``classifier``: `model.onnx` (what a server serves) and, to train through it, `weights.safetensors` (of an
  architecture of sfumato's) or `program.pt2` (of any other: see `sfumato.lab.classifiers.exported_programs`);
* ``obfuscator``: `obfuscator.onnx` (image in [0, 1] to classifier input). With a `gate`, the graph of
  `obfuscator.onnx` has a second output, `device_logits`: the on-device prediction, calibrated logits (N, classes)
  float32. With a `decoder.onnx` it has one more, the last, `code`: (N, B) uint8, from which the decoder, which is no
  secret and runs in the cloud before the classifier, makes the classifier's input. Its `code_fingerprint` says what
  codes mean: bundles with the same one, for other classifiers maybe, draw each other's codes.

What only the lab needs lies apart, see `sfumato.artifacts.lab_files`: `obfuscator.safetensors`, and, where one was
trained with it, a deobfuscator in `deobfuscator.onnx` / `deobfuscator.safetensors`. One in 8-bit integers
(`sfumato export --to int8`) has `float32.safetensors` instead of `obfuscator.safetensors`: the weights that it was
made of, which compute something else than its ONNX file, and serve nothing but attackers who need gradients.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self, TypeVar, cast

from sfumato.artifacts.class_map import ClassMap, identity
from sfumato.artifacts.files import write_json
from sfumato.artifacts.fingerprint import whole_sha256
from sfumato.artifacts.gate import Gate
from sfumato.artifacts.hub import HubPlace, in_cache, push
from sfumato.artifacts.labelling import SUPPORTED, Labelling, read_labelling
from sfumato.artifacts.manifest import MANIFEST as MANIFEST
from sfumato.artifacts.manifest import SCHEMA, local_folder, parse_manifest, read_manifest
from sfumato.artifacts.out_of_distribution import OodDetector
from sfumato.artifacts.preprocessing import Preprocessing
from sfumato.artifacts.records import Figures, Provenance, RecipeRecord
from sfumato.artifacts.signature import KeyFiles, check_signature, remove_signature, write_signature
from sfumato.errors import BundleError

CLASSIFIER_ONNX = "model.onnx"
CLASSIFIER_WEIGHTS = "weights.safetensors"
CLASSIFIER_PROGRAM = "program.pt2"
OBFUSCATOR_ONNX = "obfuscator.onnx"
OBFUSCATOR_WEIGHTS = "obfuscator.safetensors"
FLOAT_WEIGHTS = "float32.safetensors"
DECODER_ONNX = "decoder.onnx"
DEOBFUSCATOR_ONNX = "deobfuscator.onnx"
DEOBFUSCATOR_WEIGHTS = "deobfuscator.safetensors"
BASELINE = "baseline"
"""The kind of a baseline's recipe."""

Kind = Literal["classifier", "obfuscator"]
T = TypeVar("T")
_REQUIRED: dict[str, str] = {"classifier": CLASSIFIER_ONNX, "obfuscator": OBFUSCATOR_ONNX}
PUBLIC_FILES = (OBFUSCATOR_ONNX, DECODER_ONNX, CLASSIFIER_ONNX, CLASSIFIER_WEIGHTS)
"""What is pushed to the hub of a bundle; nothing that only the lab needs, and nothing that may hold a pickle."""


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: the content of its manifest, and where it lies.

    Attributes:
        path: the folder.
        kind: "classifier" or "obfuscator".
        name: the classifier's name; what a server calls the model.
        labels: one name per class, in the order of the logits, or of the class map.
        preprocessing: how an image becomes the classifier's input.
        classifier_fingerprint: `sha256:<hex>` of the classifier's ONNX file, see `fingerprint`.
        recipe: the resolved recipe that made it.
        figures: what was measured of it.
        provenance: what was run: commit, seed, library versions, device, how many images.
        files: SHA-256 in hex of each file, by name; empty until it is saved.
        gate: when an on-device prediction is final; None if every image is sent.
        code_fingerprint: what the codes of the split form mean; None if it has none, or does not say.
        class_map: which of the classifier's outputs make up each class; None if they are the classes.
        ood_detector: which images are unlike the training images; None if that was not calibrated.
        signed_by: the id of the trusted key that has signed it, if that was checked when it was loaded.
        labelling: whether an image has one of the classes, or any number of them at once.

    Raises:
        BundleError: a multi-label one has a gate or a detector, or its class map merges outputs.
    """

    path: Path
    kind: Kind
    name: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    classifier_fingerprint: str
    recipe: RecipeRecord = field(default_factory=RecipeRecord)
    figures: Figures = field(default_factory=Figures)
    provenance: Provenance = field(default_factory=Provenance)
    files: Mapping[str, str] = field(default_factory=dict)
    gate: Gate | None = None
    code_fingerprint: str | None = None
    class_map: ClassMap | None = None
    ood_detector: OodDetector | None = None
    signed_by: str | None = None
    labelling: Labelling = "single-label"

    def __post_init__(self) -> None:
        if self.multi_label and (self.gate is not None or self.ood_detector is not None):
            raise BundleError(
                f"{self.path} is multi-label, and has a gate or an out-of-distribution detector, which need one class "
                "per image"
            )
        if self.multi_label and self.class_map is not None and self.class_map.sums:
            raise BundleError(
                f"{self.path} is multi-label, and its class map merges several outputs into one class, whose "
                "probability they do not determine; give one index for each class"
            )

    @property
    def multi_label(self) -> bool:
        """Whether an image may have any number of the classes at once."""
        return self.labelling == "multi-label"

    def check_single_label(self, what: str) -> None:
        """Raise a `BundleError` if it is multi-label, as `what`, the subject of the sentence, takes one class."""
        if self.multi_label:
            raise BundleError(
                f"{self.path} is multi-label; {what} needs one class per image and cannot use it. What can: {SUPPORTED}"
            )

    @property
    def outputs(self) -> int:
        """How many logits the classifier gives for an image: one per label, unless a class map says otherwise."""
        return len(self.labels) if self.class_map is None else self.class_map.outputs

    @property
    def classifier_identity(self) -> str:
        """The classifier's fingerprint and class map in one text."""
        return identity(self.classifier_fingerprint, self.class_map)

    def check_classifier(self, classifier: Bundle) -> None:
        """Raise a `BundleError` if this is an obfuscator for another classifier, or for other classes of it."""
        wanted, given = self.classifier_fingerprint, classifier.classifier_fingerprint
        if wanted != given:
            raise BundleError(
                f"{self.path} was trained for classifier {wanted[:19]}…, {classifier.path} is {given[:19]}…; give the "
                "classifier that it was trained for"
            )
        if self.class_map != classifier.class_map:
            raise BundleError(
                f"{self.path} was trained for the classifier of {classifier.path}, but with another class map; import "
                "the classifier again with the one that it was trained with"
            )
        if self.labelling != classifier.labelling:
            raise BundleError(f"{self.path} is {self.labelling}, but the classifier of {classifier.path} is not")

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists.

        Raises:
            BundleError: the manifest does not list it.
        """
        if name not in self.files:
            raise BundleError(f"bundle {self.path} has no {name}; it lists {', '.join(sorted(self.files))}")
        return self.path / name

    def save(self) -> Self:
        """Hash the files that lie in the folder and write `bundle.json` atomically; a signature is removed.

        Returns:
            The bundle as saved, with the hashes of its files.

        Raises:
            BundleError: a file that this kind needs is missing, one keeps weights in a second file, or the disk
                refuses.
        """
        if in_cache(self.path):
            raise BundleError(f"{self.path} lies in the hub's cache, which others use too; change a copy of the folder")
        names = sorted(p.name for p in self.path.glob("*") if p.suffix in (".onnx", ".safetensors", ".pt2"))
        if _REQUIRED[self.kind] not in names:
            raise BundleError(f"cannot save a {self.kind} bundle without {_REQUIRED[self.kind]} in {self.path}")
        saved = replace(self, files={name: whole_sha256(self.path / name) for name in names}, signed_by=None)
        remove_signature(self.path)  # it would be that of the manifest before
        write_json(self.path / MANIFEST, saved.to_json())
        return saved

    def sign(self, private_key: str | os.PathLike[str]) -> Self:
        """Sign the bundle as it lies on disk: its manifest, and with it every file; needs `sfumato[sign]`.

        Args:
            private_key: a file with an Ed25519 private key without a passphrase, PEM, as `openssl genpkey` writes it.

        Returns:
            The bundle, with `signed_by`.

        Raises:
            BundleError: the bundle was changed, the key cannot be used, or the disk refuses.
        """
        content = read_manifest(self.path)
        if parse_manifest(self.path, content).get("files") != self.files:
            raise BundleError(f"{self.path} was changed since it was read; look at it, and sign it again")
        self._verify_files()
        if in_cache(self.path):
            raise BundleError(f"{self.path} lies in the hub's cache, which others use too; sign a copy of the folder")
        return replace(self, signed_by=write_signature(self.path, content, private_key).key)

    def to_json(self) -> dict[str, object]:
        """Return the content of `bundle.json`."""
        return {
            "schema": SCHEMA,
            "kind": self.kind,
            "name": self.name,
            "labels": list(self.labels),
            "preprocessing": asdict(self.preprocessing),
            "classifier_fingerprint": self.classifier_fingerprint,
            "recipe": self.recipe.to_json(),
            "figures": self.figures.to_json(),
            "provenance": self.provenance.to_json(),
            "files": dict(self.files),
            "gate": None if self.gate is None else asdict(self.gate),
            "code_fingerprint": self.code_fingerprint,
            **({} if self.class_map is None else {"class_map": self.class_map.to_json()}),
            **({} if self.ood_detector is None else {"ood_detector": asdict(self.ood_detector)}),
            **({"labelling": self.labelling} if self.multi_label else {}),
        }

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, kind: Kind | None = None, trusted_keys: KeyFiles | None = None
    ) -> Self:
        """Read a bundle and verify every file against the manifest, and that against its signature if keys are given.

        Args:
            path: the bundle's folder, or its place on the hub: see `sfumato.artifacts.manifest.local_folder`.
            kind: the kind that the caller needs, if it matters.
            trusted_keys: files with an Ed25519 public key each, PEM; a bundle that none of them has signed as it is, is
                refused before anything of it is used. None asks for no signature. Needs `sfumato[sign]`.

        Raises:
            BundleUntrusted: keys are given, and none of them has signed the bundle as it is.
            BundleError: no such folder, no or foreign manifest, a file missing or changed, or another kind; or as
                `local_folder`.
        """
        folder = local_folder(path)
        content = read_manifest(folder)
        signed_by = None if trusted_keys is None else check_signature(folder, content, trusted_keys)
        raw = parse_manifest(folder, content)

        def of(key: str, expected: type[T]) -> T:
            value = raw.get(key)
            if not isinstance(value, expected):
                raise BundleError(f"{folder / MANIFEST}: {key!r} must be a {expected.__name__}, got {value!r:.60}")
            return value

        found = of("kind", str)
        if found not in _REQUIRED:
            raise BundleError(
                f"{folder / MANIFEST}: unknown kind {found!r:.60}; expected one of {', '.join(_REQUIRED)}"
            )
        classes, detector = raw.get("class_map"), raw.get("ood_detector")
        bundle = cls(
            path=folder,
            kind=cast(Kind, found),
            name=of("name", str),
            labels=tuple(of("labels", list)),
            preprocessing=Preprocessing.from_json(of("preprocessing", dict)),
            classifier_fingerprint=of("classifier_fingerprint", str),
            recipe=RecipeRecord.from_json(of("recipe", dict)),
            figures=Figures.from_json(of("figures", dict)),
            provenance=Provenance.from_json(of("provenance", dict)),
            files=of("files", dict),
            gate=None if raw.get("gate") is None else Gate.from_json(of("gate", dict)),
            code_fingerprint=None if raw.get("code_fingerprint") is None else of("code_fingerprint", str),
            class_map=None if classes is None else ClassMap.from_json(of("class_map", dict), of("labels", list)),
            ood_detector=None if detector is None else OodDetector.from_json(of("ood_detector", dict)),
            labelling=read_labelling(raw.get("labelling")),
            signed_by=signed_by,
        )
        if not all(isinstance(item, str) for item in (*bundle.labels, *bundle.files.values())):
            raise BundleError(f"{folder / MANIFEST}: labels and file hashes must be strings")
        if bundle.gate is not None and bundle.kind != "obfuscator":
            raise BundleError(f"{folder / MANIFEST}: only an obfuscator's bundle can have a gate")
        if bundle.ood_detector is not None and bundle.kind == "obfuscator" and bundle.gate is None:
            raise BundleError(f"{folder / MANIFEST}: an obfuscator has an ood_detector only with a gate")
        if kind is not None and bundle.kind != kind:
            raise BundleError(f"{folder} is a bundle of kind {bundle.kind!r}; one of kind {kind!r} is needed here")
        bundle._verify_files()
        return bundle

    @classmethod
    def from_pretrained(
        cls,
        repository: str,
        *,
        revision: str | None = None,
        kind: Kind | None = None,
        trusted_keys: KeyFiles | None = None,
    ) -> Self:
        """Fetch a bundle from the Hugging Face hub, or find it in the cache, and load it.

        Args:
            repository: owner/name.
            revision: a branch, a tag or, to get the same files always, a commit. Default: the branch `main`.
            kind: as in `load`.
            trusted_keys: as in `load`.

        Raises:
            BundleError: as `load`.
        """
        return cls.load(str(HubPlace(repository, revision)), kind=kind, trusted_keys=trusted_keys)

    def push_to_hub(
        self,
        repository: str,
        *,
        card: str,
        revision: str | None = None,
        private: bool = True,
        message: str = "",
        key: str | os.PathLike[str] | None = None,
    ) -> str:
        """Push to the Hugging Face hub what `write_public` writes, in one commit.

        Args:
            repository: owner/name; it is made if there is none.
            card: as in `write_public`.
            revision: the branch. Default: `main`.
            private: whether a repository that is made is seen by its owner alone.
            message: of the commit. Default: the bundle's kind and name.
            key: as in `write_public`.

        Returns:
            The commit, which `from_pretrained` takes as revision.

        Raises:
            BundleError: a file of the bundle was changed, the repository holds something else, access is refused, or
                the hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as place:
            folder, where = Path(place), HubPlace(repository, revision)
            self.write_public(folder, card=card, key=key)
            about = message or f"{self.kind} {self.name}"
            return push(folder, where, first=MANIFEST, private=private, message=about)

    def write_public(self, folder: Path, *, card: str | None = None, key: str | os.PathLike[str] | None = None) -> Self:
        """Write what a device or a server needs of the bundle, and its model card, to an empty folder.

        These are the `PUBLIC_FILES`: no deobfuscator, from which training images may be read, no other weights of the
        lab's, and no image. Of absolute paths in the manifest only the last part is left.

        Args:
            folder: where to.
            card: the content of `README.md`, such as `sfumato.lab.report.model_card.model_card` makes it; or None.
            key: a private key to sign it with, as in `sign`; a signature of the bundle itself does not hold for it.

        Returns:
            The bundle in the folder.

        Raises:
            BundleError: a file of the bundle was changed, the key cannot be used, or the disk refuses.
        """
        self._verify_files()
        try:
            for name in self.files.keys() & set(PUBLIC_FILES):
                shutil.copyfile(self.file(name), folder / name)
            if card is not None:
                (folder / "README.md").write_text(card, encoding="utf-8")
        except OSError as error:
            raise BundleError(f"cannot write to {folder}: {error.strerror or error}") from error
        made = replace(
            self,
            path=folder,
            recipe=self.recipe.without_local_places(),
            figures=self.figures.without_local_places(),
            provenance=self.provenance.without_local_places(),
        ).save()
        return made if key is None else made.sign(key)

    def _verify_files(self) -> None:
        for name, expected in self.files.items():
            if Path(name).name != name:
                raise BundleError(f"{self.path / MANIFEST} lists {name!r:.80}, which is outside the bundle's folder")
            if not os.path.isfile(self.path / name):  # noqa: PTH113 (a Path's own raises where a name is too long)
                raise BundleError(
                    f"bundle {self.path} is incomplete: {name:.80} is missing; copy the whole folder again"
                )
            got = whole_sha256(self.path / name)
            if got != expected:
                raise BundleError(
                    f"{self.path / name} has SHA-256 {got[:12]}…, the manifest says {expected[:12]}…: "
                    "the file was changed or damaged; copy the whole folder again"
                    + (", or delete it, so that it is fetched again" if in_cache(self.path) else "")
                )
        if _REQUIRED[self.kind] not in self.files:
            raise BundleError(
                f"{self.path / MANIFEST} does not list {_REQUIRED[self.kind]}, which a {self.kind} bundle needs"
            )


def split_name(name: str) -> str:
    """Return what a server calls the model that takes codes and decodes them before the classifier of that name."""
    return f"{name}-split"
