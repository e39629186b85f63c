from orchestrator.adaptive import AdaptiveInferenceEngine as AdaptiveInferenceEngine
from orchestrator.adaptive import PyTorchEngine as PyTorchEngine
from orchestrator.detector import HardwareDetector as HardwareDetector
from orchestrator.detector import HardwareTier as HardwareTier
from orchestrator.detector import InferenceBackend as InferenceBackend
from orchestrator.detector import Quantization as Quantization
from orchestrator.detector import RecommendedConfig as RecommendedConfig
from orchestrator.errors import EngineRoomError as EngineRoomError
from orchestrator.loaded import GenerationResult as GenerationResult

__version__: str
