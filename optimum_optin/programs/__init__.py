"""Models as programs of other runtimes: ONNX, PyTorch, OpenVINO, and how far their outputs are from the model's."""
