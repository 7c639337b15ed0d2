"""Other formats: ONNX, MindIR and AIR, compared with the checkpoint if possible, and files for MindSpore Lite."""
