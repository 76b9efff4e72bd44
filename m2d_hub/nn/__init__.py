"""Parts of models: tensors in, tensors out."""
