"""Files that an export carries: PyTorch and transformers only, copied as they are, never imported from here."""
