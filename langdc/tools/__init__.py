"""Small helpers around the project: what is installed, a sample clip to try things on."""
