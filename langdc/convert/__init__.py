"""Weights that others published, turned into checkpoints of this project, and back into plain directories.

Every conversion accounts for every tensor by name and shape; one that is missing, unknown or misshapen is an error.
"""
