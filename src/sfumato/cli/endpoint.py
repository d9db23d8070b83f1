"""The options of an endpoint, which `classify` and `doctor` have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from sfumato.cli import options
from sfumato.cli.options import option
from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.artifacts.bundle import Bundle
    from sfumato.device import Client, FileClient

_file_option = partial(option, rich_help_panel="Endpoints that take image files")


@dataclass(frozen=True)
class Endpoint:
    """How to reach an endpoint and what to send to it; each attribute is the option of its name."""

    model: options.Model = None
    token_file: options.TokenFile = None
    ca_file: options.CaFile = None
    cert_file: Annotated[
        Path | None, option("FILE", "This client's certificate chain, PEM, for servers that ask for one.")
    ] = None
    key_file: Annotated[Path | None, option("FILE", "Its private key, PEM. Default: in --cert-file.")] = None
    proxy: Annotated[str | None, option("URL", "HTTP proxy to connect through: http://host:port.")] = None
    timeout_s: Annotated[float, option("SECONDS", "Time for one call, retries included.", "--timeout", min=0.001)] = (
        10.0
    )
    allow_recognisable: options.AllowRecognisable = False
    provider: options.Provider = None
    trusted_key: options.TrustedKey = None
    datatype: Annotated[
        Literal["FP32", "FP16", "FP64", "UINT8"] | None,
        option(
            "TYPE", "FP32, FP16, FP64, or UINT8 for an obfuscator with 8-bit output. Default: what the model takes."
        ),
    ] = None
    encoding: Annotated[
        Literal["binary", "json"] | None, option(None, "Encoding over HTTP. Default: binary if the server lists it.")
    ] = None
    input_name: Annotated[
        str | None, option("NAME", "The model's input, where the server lists none. Default: input.")
    ] = None
    files: Annotated[
        Literal["form", "body", "json"] | None,
        _file_option(
            "form|body|json", "Send image files to --server, the full address: as a form, as the body, or in JSON."
        ),
    ] = None
    field: Annotated[str | None, _file_option("NAME", "The form's field, or the JSON key. Default: file.")] = None
    template: Annotated[
        str | None, _file_option("JSON", "JSON to send; {base64} stands for the file, {type} for its media type.")
    ] = None
    file_format: Annotated[
        Literal["smallest", "png", "webp"] | None,
        _file_option("FORMAT", "png, webp (lossless), or smallest: the smaller one of each image. Default: smallest."),
    ] = None
    response_path: Annotated[
        str | None,
        _file_option(
            "PATH", "Place of the label or the scores in the response: responses.0.labels. Default: its root."
        ),
    ] = None
    response_keys: Annotated[str | None, _file_option("A,B", "The keys of label and score. Default: label,score.")] = (
        None
    )
    rounding: Annotated[
        bool,
        _file_option(
            "",
            "Round payloads in [0, 1], such as a sketch's, to 8 bits. Default: accept 8-bit obfuscators only.",
            "--round",
        ),
    ] = False

    def client(
        self, server: str | None, bundle: Path, *, gate: bool, split: bool = False, allow_insecure_token: bool = False
    ) -> Client | FileClient:
        """Make the client of the endpoint.

        Raises:
            SfumatoError: options do not go together, one is malformed, or the endpoint cannot be used.
        """
        from sfumato.device import Client, FileClient
        from sfumato.device.transport import ConnectionOptions

        connection = ConnectionOptions(
            token=options.read_token(self.token_file),
            ca_file=self.ca_file,
            cert_file=self.cert_file,
            key_file=self.key_file,
            proxy=self.proxy,
            timeout_s=self.timeout_s,
            allow_insecure_token=allow_insecure_token,
        )
        if self.files is None:
            of_files = (
                self.field,
                self.template,
                self.file_format,
                self.response_path,
                self.response_keys,
                self.rounding,
            )
            if any(of_files):
                raise SfumatoError("options for image files were given without --files form, body or json")
            return Client(
                server,
                self._trusted(bundle, server),
                model=self.model,
                datatype=self.datatype,
                encoding=self.encoding,
                input_name=self.input_name,
                split=split,
                gate=gate,
                providers=self.provider or (),
                allow_recognisable=self.allow_recognisable,
                **connection,
            )
        protocol: dict[str, object] = {"--model": self.model, "--datatype": self.datatype, "--encoding": self.encoding}
        protocol |= {"--input-name": self.input_name, "--split": split}
        if others := ", ".join(name for name, value in protocol.items() if value):
            raise SfumatoError(f"{others}: only for the Open Inference Protocol, not with --files; leave it out")
        if server is None:
            raise SfumatoError("--files needs --server, the full address that image files are sent to")
        label_key, score_key = self._keys or ("label", "score")
        return FileClient(
            server,
            self._trusted(bundle, server),
            style=self.files,
            field=self.field or "file",
            template=self._template,
            file_format=self.file_format or "smallest",
            prediction_path=self.response_path or "",
            label_key=label_key,
            score_key=score_key,
            rounding=self.rounding,
            gate=gate,
            providers=self.provider or (),
            allow_recognisable=self.allow_recognisable,
            **connection,
        )

    def _trusted(self, bundle: Path, server: str | None) -> Path | Bundle:
        """Return a bundle that one of the trusted keys has signed; without keys, its place as it is."""
        from sfumato.artifacts.bundle import Bundle

        if self.trusted_key is None:
            return bundle
        return Bundle.load(bundle, kind="obfuscator" if server else None, trusted_keys=self.trusted_key)

    @property
    def _keys(self) -> tuple[str, str] | None:
        if not self.response_keys:
            return None
        label_key, _, score_key = self.response_keys.partition(",")
        if not (label_key and score_key):
            raise SfumatoError(f"--response-keys takes two names, such as label,score; got {self.response_keys!r}")
        return label_key, score_key

    @property
    def _template(self) -> object:
        try:
            return json.loads(self.template) if self.template else None
        except ValueError as error:
            raise SfumatoError(f"--template is not JSON: {error}") from None
