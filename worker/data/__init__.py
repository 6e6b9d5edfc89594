"""Where samples come from, which of them make a batch, and in what order."""
