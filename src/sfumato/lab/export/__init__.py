"""Export networks from torch to what a device runs: ONNX, 8-bit integers, ExecuTorch."""
