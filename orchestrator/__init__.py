"""WHETHER, WHERE and WHEN to run inference engines; and the door in front of them.

The library's names are loaded when they are first asked for: the gateway's process imports this
package too, and has no use for them. Their types are in `__init__.pyi`.
"""

from importlib import import_module

__version__ = "0.1.0"

_LIBRARY = {
    "AdaptiveInferenceEngine": "orchestrator.adaptive",
    "PyTorchEngine": "orchestrator.adaptive",
    "GenerationResult": "orchestrator.loaded",
    "HardwareDetector": "orchestrator.detector",
    "HardwareTier": "orchestrator.detector",
    "InferenceBackend": "orchestrator.detector",
    "Quantization": "orchestrator.detector",
    "RecommendedConfig": "orchestrator.detector",
    "EngineRoomError": "orchestrator.errors",
}

__all__ = ["__version__", *_LIBRARY]


def __getattr__(name: str) -> object:
    if name in _LIBRARY:
        return getattr(import_module(_LIBRARY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LIBRARY})
