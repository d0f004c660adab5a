"""A model as one HTML page: its weights, the engine compiled to WebAssembly, its tokenizer."""

from niblick.browser.page import export_page

__all__ = ["export_page"]
