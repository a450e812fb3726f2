"""Model folders: adapters, tokenizers, chat templates."""
