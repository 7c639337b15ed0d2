"""Other formats: ONNX, MindIR and AIR, each proven equal to the checkpoint, and MindSpore Lite's files."""
