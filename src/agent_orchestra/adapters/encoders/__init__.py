"""What turns texts into vectors on this machine: ONNX models in folders, of one's own or fetched from a hub."""
