"""Options that several commands have, and what they open."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.device.image_folders import IMAGE_SUFFIXES
from sfumato.errors import ImageError, SfumatoError
from sfumato.progress import Progress, silent

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.lab.data import ImageSet

TOKEN_VARIABLE = "SFUMATO_TOKEN"
ADVANCED = "Advanced"
"""The panel of the options that a command's help shows last."""


def option(metavar: str | None, help_: str, *names: str, **more: Any) -> Any:
    """Describe an option that takes a value."""
    return typer.Option(*names, metavar=metavar, help=help_, **more)


def flag(name: str, help_: str) -> Any:
    """Describe an option without a value."""
    return typer.Option(name, help=help_)


def bundle_place(text: str) -> Path:
    """Return the folder of a bundle's place; one on the hub is fetched, but not while a shell completes the line.

    Raises:
        BundleError: it cannot be fetched.
    """
    from sfumato.artifacts.manifest import local_folder

    if "_SFUMATO_COMPLETE" in os.environ:  # set by the shell's script
        return Path(text)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        folder = local_folder(text)
    for warning in said:
        typer.echo(f"warning: {warning.message}", err=True)
    return folder


def _some_key(ctx: typer.Context, param: typer.CallbackParam, files: list[Path] | None) -> list[Path] | None:
    """Refuse a setting of trusted keys that names none: it would ask for no signature.

    Raises:
        SfumatoError: an empty environment variable or list in a file.
    """
    source = ctx.get_parameter_source(param.name or "")
    asked = (source is not None and source.name != "DEFAULT") or os.environ.get(str(param.envvar)) == ""
    if asked and not files and not ctx.resilient_parsing:
        raise SfumatoError("trusted_key names no key, so that no bundle could be trusted; name one, or leave it out")
    return files


def place_or_name(text: str) -> str:
    """Return the folder of a bundle on the hub, as `bundle_place`; any other text as it is."""
    from sfumato.artifacts.hub import HubPlace

    return text if HubPlace.parse(text) is None else str(bundle_place(text))


of_bundle = partial(option, "BUNDLE", parser=bundle_place)
"""Describe an option that names a bundle: a folder, or hf://owner/name[@revision]."""

Json = Annotated[bool, flag("--json", "Print one JSON object on standard output instead.")]
OutFile = Annotated[Path | None, option("FILE", "Write a results file here.", "--out", "-o")]
Overwrite = Annotated[bool, flag("--overwrite", "Replace what is in the folder.")]
Resume = Annotated[bool, flag("--resume", "Continue after an interruption.")]

ObfuscatorArgument = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE", help="Obfuscator bundle. Default: the shipped one.", parser=bundle_place),
]
Obfuscator = Annotated[Path | None, of_bundle("Obfuscator bundle. Default: the shipped one.")]
Classifier = Annotated[Path | None, of_bundle("Bundle of its classifier. Default: the shipped one.")]
TrustedKey = Annotated[
    list[Path] | None,
    option(
        "FILE",
        "Public key, PEM: accept bundles that it has signed, and no others; repeatable.",
        callback=_some_key,
        rich_help_panel=ADVANCED,
    ),
]
Local = Annotated[Path | None, of_bundle("On-device baseline: a classifier small enough for the device.")]
Compare = Annotated[Path | None, option("DIR", "Folder of other audits' JSON files, shown for comparison.")]
Data = Annotated[str, option("DATA", "cifar10, faces, a folder, or a hub id.")]
LabelColumn = Annotated[str | None, option("NAME", "Column with the classes. Default: found by its type or name.")]
AllowOutside = Annotated[bool, flag("--allow-outside", "Read images outside the folder of a CSV file.")]
Images = Annotated[int | None, option("N", "Use only the first N images.", min=1)]
Size = Annotated[str | None, option("HxW", "Fit every image to this size.")]

Server = Annotated[
    str | None,
    option(
        "URL", "The endpoint: https://host:port, or grpcs://host:port. None if the bundle predicts on-device alone."
    ),
]
Model = Annotated[str | None, option("NAME", "The model's name at the server. Default: the bundle's.")]
TokenFile = Annotated[Path | None, option("FILE", f"File with the bearer token. Default: ${TOKEN_VARIABLE}.")]
CaFile = Annotated[Path | None, option("FILE", "Authorities to trust, PEM. Default: the system's.")]
AllowRecognisable = Annotated[
    bool, flag("--allow-recognisable", "Accept a baseline whose payloads show the image, to try it.")
]
Port = Annotated[int, option("N", "Port to listen on; 0 takes a free one.", min=0, max=65535)]
Provider = Annotated[
    list[str] | None,
    option("NAME", "Hardware: cpu, cuda, tensorrt, openvino, coreml, qnn, nnapi; repeatable. Default: cpu."),
]
AlwaysSend = Annotated[bool, flag("--always-send", "Send every image, obfuscated: do not use the bundle's gate.")]


@dataclass(frozen=True)
class Listen:
    """How a server is reached, besides its port; each attribute is the option of its name."""

    host: Annotated[str, option("ADDRESS", "Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1"
    tls_cert: Annotated[Path | None, option("FILE", "Certificate chain, PEM.", rich_help_panel=ADVANCED)] = None
    tls_key: Annotated[Path | None, option("FILE", "Private key, PEM.", rich_help_panel=ADVANCED)] = None
    allowed_host: Annotated[
        list[str] | None, option("NAME", "Further name by which clients may address it; repeatable.")
    ] = None

    def to_server(self) -> dict[str, Any]:
        """Return them as `sfumato.cloud.ServerOptions` and the address."""
        names = {"allowed_hosts": self.allowed_host or ()}
        return {"host": self.host, "tls_cert": self.tls_cert, "tls_key": self.tls_key, **names}


def refuse_others(context: typer.Context, allowed: Iterable[str], why: str) -> None:
    """Refuse options on the command line that are not among the allowed parameters.

    Raises:
        SfumatoError: others were given; `why` ends its message.
    """
    names = []
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is not None and source.name == "COMMANDLINE" and param.name not in allowed:
            names.append(param.opts[0])
    if names:
        raise SfumatoError(f"{', '.join(sorted(names))}: {why}")


def run_mode(context: typer.Context, mode: str, function: Callable[..., None], **values: object) -> None:
    """Do what a command does with one of its flags: call a function with the options that go with it.

    Raises:
        SfumatoError: others were given.
    """
    refuse_others(context, {mode, *values}, f"not with --{mode.replace('_', '-')}")
    function(**values)


def expand_images(paths: Iterable[Path]) -> list[Path]:
    """Replace each folder by the image files that lie in it, in the order of their names.

    Raises:
        ImageError: a folder has none, or cannot be read.
    """
    images: list[Path] = []
    for path in paths:
        if not path.is_dir():
            images.append(path)
            continue
        try:
            found = sorted(child for child in path.iterdir() if child.suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            raise ImageError(f"cannot read the folder {path}: {error.strerror}") from error
        if not found:
            raise ImageError(f"the folder {path} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})")
        images += found
    return images


def read_text(file: Path, what: str) -> str:
    """Read a small text file.

    Raises:
        SfumatoError: it cannot be read, or is not text.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SfumatoError(f"cannot read {what} from {file}: {getattr(error, 'strerror', 'not text')}") from None


def read_token(file: Path | None) -> str | None:
    """Return the token in a file or in the environment; it is no option, because others can read a command line.

    Raises:
        SfumatoError: the file cannot be read or is empty.
    """
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    token = read_text(file, "the token").strip()
    if not token:
        raise SfumatoError(f"the token file {file} is empty")
    return token


def image_size(text: str | None) -> tuple[int, int] | None:
    """Return rows and columns: `64x48` -> (64, 48); None for None.

    Raises:
        SfumatoError: something else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise SfumatoError(f"a size is rows x columns, such as 32x32; got {text!r}")
    return int(found[1]), int(found[2])


def obfuscator_path(path: Path | None) -> Path:
    """Return the folder of an obfuscator's bundle; None for the shipped one."""
    from sfumato.artifacts import shipped

    return path or shipped.obfuscator_bundle()


def open_obfuscator(
    path: Path | None, *, trusted_keys: Sequence[Path] | None = None, multi_label: bool = False
) -> Bundle:
    """Open an obfuscator's bundle; None for the shipped one.

    Raises:
        BundleError: it cannot be used, or is multi-label, and the command does not say that it can use such a one.
    """
    from sfumato.artifacts.bundle import Bundle

    found = Bundle.load(obfuscator_path(path), kind="obfuscator", trusted_keys=trusted_keys)
    if not multi_label:
        found.check_single_label("this command")
    return found


def open_classifier(
    path: Path | None, *, trusted_keys: Sequence[Path] | None = None, multi_label: bool = False
) -> Bundle:
    """Open a classifier's bundle; None for the shipped one. See `open_obfuscator`."""
    from sfumato.artifacts import shipped
    from sfumato.artifacts.bundle import Bundle

    found = Bundle.load(path or shipped.classifier_bundle(), kind="classifier", trusted_keys=trusted_keys)
    if not multi_label:
        found.check_single_label("this command")
    return found


def open_start(path: Path) -> Bundle:
    """Open the bundle that a training starts from, of an obfuscator or a classifier.

    Raises:
        BundleError: it cannot be used, or is multi-label.
    """
    from sfumato.artifacts.bundle import Bundle

    found = Bundle.load(path)
    found.check_single_label("this command")
    return found


def load_split(
    data: str,
    split: str,
    bundle: Bundle,
    label_column: str | None,
    images: int | None,
    *,
    allow_outside: bool = False,
    progress: Progress = silent,
) -> ImageSet:
    """Return the first `images` of a split, in a bundle's size; labelled for each class if it is multi-label."""
    from sfumato.lab.data import load_images

    if bundle.multi_label and label_column:
        raise SfumatoError("--label-column: a multi-label classifier has one column for each class, with its name")
    found = load_images(
        data,
        split,
        size=(bundle.preprocessing.height, bundle.preprocessing.width),
        label_column=label_column,
        label_columns=bundle.labels if bundle.multi_label else None,
        allow_outside=allow_outside,
        progress=progress,
    )
    return found.subset(images)
