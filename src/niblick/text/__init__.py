"""Text to tokens and back: tokenizers that are rebuilt from their own bytes. No torch."""
