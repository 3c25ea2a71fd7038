"""What a model's files say of its weights, of its shape, and of how it generates."""
