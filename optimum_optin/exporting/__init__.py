"""Exporting: a model as one file of ONNX, PyTorch or OpenVINO, checked against the model itself."""
