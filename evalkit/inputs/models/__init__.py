"""What a model is before its weights are loaded: files, config, sizes, tokenizer; built-in ones."""
