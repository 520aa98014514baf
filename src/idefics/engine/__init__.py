"""Engine: token ids and tensors in, tokens out; knows no text."""
