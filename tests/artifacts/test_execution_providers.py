"""Providers by the names that users write, with fakes in the place of hardware that is not here."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import onnxruntime
import pytest

import tiny
from sfumato.artifacts import execution_providers
from sfumato.artifacts.execution_providers import PROVIDERS, available_providers, native_providers
from sfumato.cloud import ServedModel
from sfumato.device import Client, FileClient, Obfuscator
from sfumato.errors import BundleError, ServingError

REAL = onnxruntime.InferenceSession
CUDA, CPU = PROVIDERS["cuda"], PROVIDERS["cpu"]


class Part:
    """A part of a graph, as ONNX Runtime reports them."""

    def __init__(self, ep_name: str) -> None:
        self.ep_name = ep_name


class Fake:
    """A session that claims to run on what it was asked for, and computes on the CPU.

    Attributes:
        refuses: the providers that break while a model is loaded.
        unloaded: those that are left out without an error, as CUDA is without its libraries.
        declines: whether all of the model goes to the CPU.
    """

    refuses: frozenset[str] = frozenset()
    unloaded: frozenset[str] = frozenset()
    declines = False

    def __init__(self, path: str, options: Any, *, providers: list[str], enable_fallback: int) -> None:
        assert not enable_fallback, "ONNX Runtime's own fallback prints on standard output"
        if self.refuses & set(providers):
            raise RuntimeError("the driver's own words, with /its/paths")
        self._real = REAL(path, options, providers=[CPU])
        self._providers = [name for name in providers if name not in self.unloaded]

    def get_providers(self) -> list[str]:
        return self._providers

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return [Part(CPU if self.declines else self._providers[0]), Part(CPU)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """ONNX Runtime with CUDA and OpenVINO."""

    class Own(Fake):
        pass

    there = [CUDA, PROVIDERS["openvino"], "AzureExecutionProvider", CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: there)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Own)
    execution_providers._say_once.cache_clear()
    return Own


def test_names_are_those_of_users_and_the_cpu_comes_last(fake):
    assert available_providers() == ("cpu", "cuda", "openvino")
    assert native_providers([]) == native_providers(["cpu"]) == [CPU]
    assert native_providers(["openvino", "cuda"]) == ["OpenVINOExecutionProvider", CUDA, CPU]
    assert native_providers(["cuda", "cpu", "cuda"]) == [CUDA, CPU]


def test_every_name_is_one_that_onnx_runtime_knows():
    assert set(PROVIDERS.values()) <= set(onnxruntime.get_all_providers())


@pytest.mark.parametrize(
    ("name", "said"),
    [("tensorrt", "has no execution provider 'tensorrt', only cpu, cuda, openvino"), ("gpu", "known are cpu, cuda")],
)
def test_what_is_not_there_is_an_error_that_lists_what_is(fake, obfuscator_bundle, classifier_bundle, name, said):
    with pytest.raises(BundleError, match=said):
        Obfuscator(obfuscator_bundle, providers=[name])
    with pytest.raises(ServingError, match=said):
        ServedModel(classifier_bundle.path, providers=["cuda", name])


def test_device_and_server_run_on_what_was_asked_for(fake, obfuscator_bundle, classifier_bundle, caplog):
    obfuscator = Obfuscator(obfuscator_bundle, providers=["cuda"])
    assert obfuscator.providers == ("cuda", "cpu")
    image = np.full((tiny.SIZE, tiny.SIZE, 3), 7, np.uint8)
    assert obfuscator.obfuscate(image).tensor.shape == (3, tiny.SIZE, tiny.SIZE)
    client = Client("http://127.0.0.1:9", obfuscator_bundle, providers=["openvino", "cuda"])
    assert client.obfuscator.providers == ("openvino", "cuda", "cpu")
    files = FileClient(
        "http://127.0.0.1:9", obfuscator_bundle, rounding=True, providers=["cuda"], allow_recognisable=False
    )
    assert files.obfuscator.providers == ("cuda", "cpu")
    assert Client(None, classifier_bundle, providers=["cuda"]).providers == ("cuda", "cpu")
    assert Obfuscator(obfuscator_bundle).providers == ("cpu",), "nothing but the CPU unless it is asked for"
    assert ServedModel(classifier_bundle.path, providers=["cuda"])._session.get_providers() == [CUDA, CPU]
    assert caplog.records == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"refuses": frozenset({CUDA})}, "RuntimeError while the model was loaded"),
        ({"unloaded": frozenset({CUDA})}, "it cannot be loaded here"),
        ({"declines": True}, "it takes no part of the model"),
    ],
)
def test_where_one_does_not_run_it_the_cpu_does_and_it_is_said_once(
    fake, obfuscator_bundle, caplog, capfd, changes, reason
):
    for name, value in changes.items():
        setattr(fake, name, value)
    for _ in range(3):
        assert Obfuscator(obfuscator_bundle, providers=["cuda"]).providers == ("cpu",)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"obfuscator.onnx is not run by cuda ({reason}); cpu takes its place"
    assert capfd.readouterr().out == "", "standard output belongs to the command"


def test_one_that_loads_is_used_although_another_does_not(fake, obfuscator_bundle, caplog):
    fake.unloaded = frozenset({CUDA})
    assert Obfuscator(obfuscator_bundle, providers=["cuda", "openvino"]).providers == ("openvino", "cpu")
    (record,) = caplog.records
    assert record.getMessage().endswith("; openvino takes its place")


def test_a_file_that_is_no_model_is_the_files_error_on_any_provider(fake, tmp_path, caplog):
    (tmp_path / "model.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ServingError, match="cannot be run"):
        ServedModel(tmp_path / "model.onnx", providers=["cuda"])
    assert caplog.records == []


@pytest.mark.skipif(
    PROVIDERS["openvino"] not in onnxruntime.get_available_providers(), reason="needs onnxruntime-openvino"
)
def test_openvino_computes_what_the_cpu_computes(obfuscator_bundle, classifier_bundle, caplog):
    images = np.random.default_rng(0).random((5, 3, tiny.SIZE, tiny.SIZE), dtype=np.float32)
    obfuscator = Obfuscator(obfuscator_bundle, providers=["openvino"])
    assert obfuscator.providers == ("openvino", "cpu")
    payload = obfuscator(images)
    assert np.allclose(payload, tiny.obfuscate(images), atol=1e-4)
    model = ServedModel(classifier_bundle.path, providers=["openvino"])
    assert np.allclose(model._run((payload,))[0], tiny.logits(payload), atol=1e-2)
    assert caplog.records == []
