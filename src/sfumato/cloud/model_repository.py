"""What a server serves: models by name and version, and how they are replaced while it runs."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.artifacts.bundle import MANIFEST, split_name
from sfumato.artifacts.external_data import external_data
from sfumato.artifacts.signature import KeyFiles
from sfumato.cloud.dataplane import VERSION, ServedModel, checked_version, open_bundle
from sfumato.errors import ModelNotFound, ServingError, SfumatoError
from sfumato.wire import ModelMetadata

log = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
Load = Callable[["Source"], ServedModel]
_State = list[tuple[str, int, int, int, int]]
_Loaded = tuple[_State, ServedModel]
"""A source's state when it was loaded, and the model."""


@dataclass(frozen=True)
class Source:
    """The origin of one version of a model: a bundle's folder or an ONNX file, and perhaps a decoder's bundle.

    Where keys are given, one of them has to have signed the bundles.
    """

    path: Path
    name: str
    version: str = VERSION
    decoder: Path | None = None
    trusted_keys: tuple[Path, ...] | None = None

    def open(self, **options: Any) -> ServedModel:
        """Open the model; takes what else `ServedModel` takes, and raises as it does."""
        return ServedModel(
            self.path,
            name=self.name,
            version=self.version,
            decoder=self.decoder,
            trusted_keys=self.trusted_keys,
            **options,
        )

    def state(self) -> _State:
        """Return what changes when the files do, those with an ONNX file's weights and the trusted keys included.

        Raises:
            OSError: the files cannot be read.
        """
        paths = [self.path] if self.decoder is None else [self.path, self.decoder]
        files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else _model_files(path))]
        facts = [(str(file), file.stat()) for file in (*files, *(self.trusted_keys or ())) if file.exists()]
        # A copy that keeps its times (`cp -p`, rsync) has another time of change all the same.
        return [(name, fact.st_size, fact.st_mtime_ns, fact.st_ctime_ns, fact.st_ino) for name, fact in facts]


def _model_files(path: Path) -> list[Path]:
    return [path, *(path.parent / name for name in external_data(path))] if path.is_file() else [path]


def sources_in(folder: str | os.PathLike[str]) -> list[Source]:
    """Find the models in a folder laid out as Triton's.

    It has `NAME/VERSION/model.onnx`, or classifiers' bundles as `NAME/VERSION`. Other files, and folders whose name
    starts with a dot, are ignored.

    Raises:
        ServingError: there is no such folder or nothing in it, a model has no version, or a version is no number or has
            no model.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ServingError(f"no folder at {root}: one with NAME/VERSION/{MODEL_FILE} in it is expected")
    models = {model: _folders(model) for model in _folders(root)}
    for model, versions in models.items():
        if not versions:
            raise ServingError(f"{model} has no versions: put the model into {model / '1'}")
    found = [_source(model, version) for model, versions in models.items() for version in versions]
    if not found:
        raise ServingError(f"{root} has no models: NAME/VERSION/{MODEL_FILE} is expected in it")
    return found


def _folders(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _source(model: Path, version: Path) -> Source:
    try:
        checked_version(version.name)
    except ServingError as error:
        raise ServingError(f"{version}: {error}") from None
    if (version / MANIFEST).is_file():
        return Source(version, model.name, version.name)
    if (version / MODEL_FILE).is_file():
        return Source(version / MODEL_FILE, model.name, version.name)
    raise ServingError(f"{version} has neither {MODEL_FILE} nor a classifier bundle's {MANIFEST}")


class Catalogue:
    """Models by name and version.

    Args:
        find: lists what is to be served; called again on every `reload`.
        load: opens one of them.

    Raises:
        ServingError: there is no model, two have one name and version, or as `find` and `load`.
        BundleError: as `load`.
    """

    def __init__(self, find: Callable[[], list[Source]], load: Load) -> None:
        self._find = find
        self._load = load
        self._by_name: dict[str, dict[str, ServedModel]] = {}
        self._loaded: dict[Source, _Loaded] = {}
        self._replace_by({source: (source.state(), load(source)) for source in _distinct(find())})

    @classmethod
    def of(cls, models: Iterable[ServedModel]) -> Catalogue:
        """Make a catalogue of open models; `reload` leaves it as it is.

        Raises:
            ServingError: there is no model, or two have one name and version.
        """
        opened = {Source(Path(str(index)), model.name, model.version): model for index, model in enumerate(models)}
        return cls(lambda: list(opened), opened.__getitem__)

    def __iter__(self) -> Iterator[ServedModel]:
        return (model for versions in self._by_name.values() for model in versions.values())

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """Return the model of that name, in that version or else the highest.

        Raises:
            ModelNotFound: there is none, or not in that version.
        """
        versions = self._by_name.get(name)
        if versions is None:
            raise ModelNotFound(f"no such model; this server has {', '.join(self._by_name)}")
        if version is None:
            return next(iter(versions.values()))
        if version not in versions:
            raise ModelNotFound(f"no such version; {name} has {', '.join(versions)}")
        return versions[version]

    def metadata(self, name: str, version: str | None = None) -> ModelMetadata:
        """Return a model's metadata, with all its versions, the default first.

        Raises:
            ModelNotFound: as `find`.
        """
        model = self.find(name, version)
        return dataclasses.replace(model.metadata, versions=tuple(self._by_name[name]))

    async def reload(self) -> None:
        """Serve what is to be served now, without dropping a request. What is wrong is logged, and changes nothing.

        New and changed models are opened and tried in a thread, while the old ones keep serving. If a model cannot be
        served, all versions of its name stay as they were. Old models finish the requests that they have, then close.
        """
        try:
            gone = self._replace_by(await asyncio.to_thread(self._load_again))
        except (SfumatoError, OSError) as error:
            log.error("nothing is reloaded: %s", error)
            return
        log.info("reloaded: serving %s", ", ".join(f"{model.name} version {model.version}" for model in self))
        await asyncio.gather(*(model.close() for model in gone))

    async def close(self) -> None:
        """Finish the requests that wait, and stop."""
        await asyncio.gather(*(model.close() for model in self))

    def _load_again(self) -> dict[Source, _Loaded]:
        loaded: dict[Source, _Loaded] = {}
        refused: set[str] = set()
        for source in _distinct(self._find()):
            before = self._loaded.get(source)
            try:
                state = source.state()
                loaded[source] = before if before and before[0] == state else (state, self._load(source))
            except (SfumatoError, OSError) as error:
                log.error("refused version %s of %s, which stays as it was: %s", source.version, source.name, error)
                refused.add(source.name)
        for source, found in self._loaded.items():
            if source.name in refused:
                loaded.setdefault(source, found)
        return loaded

    def _replace_by(self, loaded: dict[Source, _Loaded]) -> list[ServedModel]:
        """Serve these models instead, and return those that are no longer needed."""
        before, models = list(self), [model for _, model in loaded.values()]
        by_name: dict[str, dict[str, ServedModel]] = {}
        for model in sorted(models, key=lambda model: int(model.version), reverse=True):
            by_name.setdefault(model.name, {})[model.version] = model
        self._by_name, self._loaded = by_name, loaded
        return [model for model in before if model not in models]


def catalogue_of(
    paths: Sequence[Path],
    folder: Path | None = None,
    *,
    name: str | None = None,
    decoder: Path | None = None,
    trusted_keys: Sequence[Path] | None = None,
    **options: Any,
) -> Catalogue:
    """Make a catalogue of models in files, which can be reloaded.

    Args:
        paths: classifier bundles' folders, or ONNX files.
        folder: more of them, as `sources_in` has it.
        name: what the only one of `paths` is called, instead of its own name.
        decoder: an obfuscator's bundle; the only one of `paths` then takes its codes, too, as a second model.
        trusted_keys: files with a public key each; one of them has to have signed each bundle, whenever it is loaded.
        **options: what else `ServedModel` takes, for all of them.

    Raises:
        ServingError: there is no model, two have one name and version, one cannot be served, or `name` or `decoder`
            are given for anything but one path.
        BundleUntrusted: keys are given, and none of them has signed a bundle as it is; or a model is an ONNX file.
        BundleError: a folder is no bundle of the kind it has to be, or is damaged.
    """
    keys = None if trusted_keys is None else tuple(trusted_keys)
    if not paths and folder is None:
        raise ServingError("nothing to serve: give bundles or ONNX files, or --models FOLDER")
    if len(paths) != 1 and (name is not None or decoder is not None):
        raise ServingError(f"--name and --decoder are for one model; {len(paths)} are given")

    def find() -> list[Source]:
        found = [Source(path, name or _own_name(path, keys)) for path in paths]
        if decoder is not None:
            found.append(Source(paths[0], split_name(found[0].name), decoder=decoder))
        found += sources_in(folder) if folder is not None else []
        return [dataclasses.replace(source, trusted_keys=keys) for source in found]

    return Catalogue(find, lambda source: source.open(**options))


def _own_name(path: Path, trusted_keys: KeyFiles | None) -> str:
    bundle = open_bundle(path, trusted_keys)
    return path.stem if bundle is None else bundle.name


def _distinct(sources: list[Source]) -> list[Source]:
    if not sources:
        raise ServingError("there is no model to serve")
    seen: set[tuple[str, str]] = set()
    for source in sources:
        if (source.name, source.version) in seen:
            which = f"two models are called {source.name!r} and have version {source.version}"
            raise ServingError(f"{which}; give one of them another name")
        seen.add((source.name, source.version))
    return sources
