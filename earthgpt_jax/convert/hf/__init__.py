"""Files that an export copies into its folder. They depend on PyTorch and transformers and are never imported here."""
