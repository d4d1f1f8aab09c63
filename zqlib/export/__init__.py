"""Models in formats that other runtimes load: ONNX in float, with Q/DQ, and in integers only."""
