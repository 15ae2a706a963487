"""Programs over the library: flags, files, pictures."""
