"""ONNX Runtime's execution providers: the hardware that runs a model, by the names that users write.

Which of them exist is decided by the wheel of ONNX Runtime that is installed: `onnxruntime-gpu` has CUDA and TensorRT,
`onnxruntime-openvino` has OpenVINO, `onnxruntime-qnn` has QNN, and the one for macOS has CoreML. The CPU is always
there, and takes over, with one warning in the log, where another provider cannot load or does not take the model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sfumato.errors import BundleError, SfumatoError

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
}
"""Names as users write them, and ONNX Runtime's."""
CPU = ("cpu",)
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"  # older versions of ONNX Runtime ignore it
_LOG = logging.getLogger(__name__)


def available_providers() -> tuple[str, ...]:
    """Return the names of the providers that the installed ONNX Runtime has, in the order of `PROVIDERS`."""
    import onnxruntime

    there = set(onnxruntime.get_available_providers())
    return tuple(name for name, native in PROVIDERS.items() if native in there)


def native_providers(names: Sequence[str], *, error: type[SfumatoError] = BundleError) -> list[str]:
    """Return ONNX Runtime's names for the providers, in order of preference, with the CPU last.

    Args:
        names: keys of `PROVIDERS`, the preferred one first; none stands for the CPU.
        error: what to raise.

    Raises:
        SfumatoError: of the class given; a name is unknown, or the installed ONNX Runtime has no such provider.
    """
    if tuple(names) in ((), CPU):
        return [PROVIDERS["cpu"]]
    there = available_providers()
    for name in names:
        if name not in PROVIDERS:
            raise error(f"no execution provider is called {name!r}; known are {', '.join(PROVIDERS)}")
        if name not in there:
            raise error(
                f"the installed ONNX Runtime has no execution provider {name!r}, only {', '.join(there)}; choose one "
                "of these, or install the onnxruntime wheel that has it"
            )
    return list(dict.fromkeys([*(PROVIDERS[name] for name in names), PROVIDERS["cpu"]]))


def open_on_providers(path: Path, options: Any, native: Sequence[str]) -> Any:
    """Open an ONNX Runtime session; on the CPU alone, and say so once, if the providers before it do not run the model.

    Args:
        path: the ONNX file.
        options: `onnxruntime.SessionOptions`.
        native: as `native_providers` returns them.

    Returns:
        `onnxruntime.InferenceSession`, whose errors are those of ONNX Runtime.
    """
    import onnxruntime

    preferred, reasons = list(native[:-1]), dict[str, str]()
    if preferred:
        options.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
        try:
            # Without ONNX Runtime's own fallback, which prints on standard output.
            session = onnxruntime.InferenceSession(str(path), options, providers=list(native), enable_fallback=0)
        except Exception as error:  # ONNX Runtime's errors have no common base
            reasons = dict.fromkeys(preferred, f"{type(error).__name__} while the model was loaded")
        else:
            loaded = set(session.get_providers())
            reasons = {name: "it cannot be loaded here" for name in preferred if name not in loaded}
            rest = [name for name in preferred if name in loaded]
            if _runs_part(session, rest):
                _say(reasons, path, provider_names(session)[0])
                return session
            reasons |= dict.fromkeys(rest, "it takes no part of the model")
    session = onnxruntime.InferenceSession(str(path), options, providers=list(native[-1:]), enable_fallback=0)
    _say(reasons, path, "cpu")
    return session


def provider_names(session: Any) -> tuple[str, ...]:
    """Return the names of the providers of an ONNX Runtime session, the preferred one first."""
    names = {native: name for name, native in PROVIDERS.items()}
    return tuple(names.get(native, native) for native in session.get_providers())


def _runs_part(session: Any, preferred: Sequence[str]) -> bool:
    """Return whether one of the providers was given a part of the model; true if ONNX Runtime is too old to say."""
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    return bool(preferred) if ask is None else any(part.ep_name in preferred for part in ask())


def _say(reasons: dict[str, str], path: Path, used: str) -> None:
    names = {native: name for name, native in PROVIDERS.items()}
    for native, reason in reasons.items():
        _say_once(f"{path.name} is not run by {names[native]} ({reason}); {used} takes its place")


@cache
def _say_once(text: str) -> None:
    _LOG.warning("%s", text)
