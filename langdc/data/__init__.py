"""Records: the project's data format."""
