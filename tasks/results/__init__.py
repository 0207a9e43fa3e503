"""What stages wrote, read back: by seeds, in tidy rows, beside the paper's, with what speaks against it."""
