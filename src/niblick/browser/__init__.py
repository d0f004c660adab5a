"""A model as one HTML page: its weights, the engine compiled to WebAssembly, its tokenizer."""
