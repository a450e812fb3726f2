"""The prompt files, and the loader that reads them."""
