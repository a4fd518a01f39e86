"""Runs an exported halting model with numpy and onnxruntime; torch is neither needed nor imported."""

from odn_hybrid.runner.certifying import certify
from odn_hybrid.runner.loading import load
from odn_hybrid.runner.running import HaltingRunner, RunnerOutput

__all__ = ["HaltingRunner", "RunnerOutput", "certify", "load"]
